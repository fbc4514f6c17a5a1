#!/usr/bin/env bash
# {{name}}: a workload of xpk on TPUs {{slice}}. xpk restarts it after exit codes 42 ("start me again") and 127 to 255
# (killed, aborted), and ends it after any other exit code.
set -euo pipefail
exec xpk workload create \
  --project={{project}} \
  --zone={{zone}} \
  --cluster={{cluster}} \
  --workload={{name}} \
  --tpu-type={{slice}} \
  --docker-image={{image}} \
  --max-restarts={{max_restarts}} \
  --restart-on-exit-codes=42 \
  --termination-grace-period-seconds={{grace}} \
  --command={{command}}

#!/usr/bin/env bash
# base-lm: a workload of xpk on TPUs v6e-32. xpk restarts it after exit codes 42 ("start me again") and 127 to 255
# (killed, aborted), and ends it after any other exit code.
set -euo pipefail
exec xpk workload create \
  --project=p \
  --zone=us-central1-a \
  --cluster=c \
  --workload=base-lm \
  --tpu-type=v6e-32 \
  --docker-image=us-docker.pkg.dev/p/images/bandtok:1 \
  --max-restarts=100 \
  --restart-on-exit-codes=42 \
  --termination-grace-period-seconds=120 \
  --command='export JAX_PLATFORMS=tpu,cpu && export JAX_COMPILATION_CACHE_DIR=/buckets/mine/runs/lm/compiled && mkdir -p /buckets/mine && gcsfuse --implicit-dirs --rename-dir-limit=200000 mine /buckets/mine && python -m bandtok_jax.launch.check_flags --accelerators=v6e:4x8 && exec bandtok train --config=language_model:base --workdir=/buckets/mine/runs/lm --config.data.tokens=/buckets/mine/tokens'
# written to launched/base-lm.xpk.sh, then: bash launched/base-lm.xpk.sh

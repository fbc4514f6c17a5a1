#!/usr/bin/env bash
# N processes of `bandtok train` on this machine's CPU, which find each other over loopback: a training of many hosts
# in small, to try a mesh or a restart before it costs anything.
#   bash launch/processes.sh N DEVICES_PER_PROCESS -- --config=NAME:VARIANT --workdir=RUN [--config.KEY=VALUE ...]
# The lines of each process begin with its number. SIGTERM (or Ctrl-C) lets all of them save and leave with 42.
set -euo pipefail
[ $# -ge 4 ] && [ "$3" = -- ] || { sed -n '4s/^# *//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
processes="$1" devices="$2"
shift 3
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" ""
exec python -m bandtok_jax.launch.processes --processes="$processes" --devices-per-process="$devices" -- "$@"

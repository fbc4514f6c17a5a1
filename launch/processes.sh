#!/usr/bin/env bash
# Runs N processes of `bandtok train` on the CPU of this machine, which find each other over loopback. This tries a mesh
# or a restart of a training on several hosts.
#   bash launch/processes.sh N DEVICES_PER_PROCESS -- --config=NAME:VARIANT --workdir=RUN [--config.KEY=VALUE ...]
# Each line of output begins with the number of its process. SIGTERM and Ctrl-C let all processes save and exit with 42.
set -euo pipefail
[ $# -ge 4 ] && [ "$3" = -- ] || { sed -n '4s/^# *//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
processes="$1" devices="$2"
shift 3
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" train
exec python -m bandtok_jax.launch.processes --processes="$processes" --devices-per-process="$devices" -- "$@"

#!/usr/bin/env bash
# Runs N processes of `bandtok train` on the CPU of this machine, which find each other over loopback. This tries a mesh
# or a restart of a training on several hosts.
#   bash launch/processes.sh N DEVICES_PER_PROCESS -- --config=NAME:VARIANT --workdir=RUN [--config.KEY=VALUE ...]
# Each line of output begins with the number of its process. SIGTERM and Ctrl-C let all processes save and exit with 42.
set -euo pipefail
case "${1:-}" in -h|--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
if ! [[ "${1:-} ${2:-} ${3:-}" =~ ^[1-9][0-9]*\ [1-9][0-9]*\ --$ ]] || [ $# -lt 4 ]; then
  echo "processes.sh: $*: give two numbers, then -- and the flags of bandtok train; --help explains" >&2
  exit 2
fi
processes="$1" devices="$2"
shift 3
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" train
exec python -m bandtok_jax.launch.processes --processes="$processes" --devices-per-process="$devices" -- "$@"

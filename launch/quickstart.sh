#!/usr/bin/env bash
# Creates an environment, installs the package, and runs every stage at its smallest size on synthetic music. This takes
# about a quarter of an hour on two CPU cores, and downloads only Python packages.
#   bash launch/quickstart.sh [OUTPUT]        default: runs/quickstart
# The same command resumes an interrupted run. A complete run only writes its report again.
set -euo pipefail
case "${1:-}" in -h|--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
if [ $# -gt 1 ] || [[ "${1:-}" = -* ]]; then
  echo "quickstart.sh: $*: give one folder for the output, or none; --help explains" >&2
  exit 2
fi
output="${1:-runs/quickstart}"
bash "$(dirname "${BASH_SOURCE[0]}")/local.sh" --music synthetic --output "$output" --size tiny \
  --prompt "slow minor piano with drums" --seconds 8 --offsets 1
echo
echo "listen to  $output/generated.wav"
echo "look at    $output/report.html"

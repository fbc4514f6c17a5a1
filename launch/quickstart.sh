#!/usr/bin/env bash
# Creates an environment, installs the package, and runs every stage at its smallest size on synthetic music. This takes
# about a quarter of an hour on two CPU cores, and downloads only Python packages.
#   bash launch/quickstart.sh [OUTPUT]        default: runs/quickstart
# The same command resumes an interrupted run. A complete run only writes its report again.
set -euo pipefail
output="${1:-runs/quickstart}"
bash "$(dirname "${BASH_SOURCE[0]}")/local.sh" --music synthetic --output "$output" --size tiny \
  --prompt "slow minor piano with drums" --seconds 8 --offsets 1
echo
echo "listen to  $output/generated.wav"
echo "look at    $output/report.html"

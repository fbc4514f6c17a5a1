#!/usr/bin/env bash
# From nothing to new music in a quarter of an hour on two CPU cores: makes the environment, installs, and runs every
# stage at its smallest size on music that the package itself composes. Nothing but Python packages is downloaded.
#   bash launch/quickstart.sh [OUTPUT]        default: runs/quickstart
# Start it again to go on after an interruption; a run that is complete only writes its report anew.
set -euo pipefail
output="${1:-runs/quickstart}"
bash "$(dirname "${BASH_SOURCE[0]}")/local.sh" --music synthetic --output "$output" --size tiny \
  --prompt "slow minor piano with drums" --seconds 8 --offsets 1
echo
echo "listen to  $output/generated.wav"
echo "look at    $output/report.html"

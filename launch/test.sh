#!/usr/bin/env bash
# Installs what the tests need and runs them; arguments go to pytest.
#   bash launch/test.sh                the fast tests (minutes)
#   bash launch/test.sh -m slow        the slow proofs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh test
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# One process a core, each test file in one of them; a process need not use more than its core.
exec python -m pytest --numprocesses=auto --dist=loadfile --durations=15 "$@"

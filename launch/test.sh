#!/usr/bin/env bash
# Installs what the tests need and runs them; arguments go to pytest.
#   bash launch/test.sh                the fast tests (minutes)
#   bash launch/test.sh -m slow        the slow proofs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh test
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# A test runs its programs for a moment: compiling them fast saves half of the time.
export XLA_FLAGS="${XLA_FLAGS:---xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true}"
# One process a core, each test file in one of them; a process need not use more than its core.
exec python -m pytest --numprocesses=auto --dist=loadfile --durations=15 "$@"

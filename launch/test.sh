#!/usr/bin/env bash
# Installs what the tests need and runs them; arguments go to pytest.
#   bash launch/test.sh                the fast tests (minutes)
#   bash launch/test.sh -m slow        the slow proofs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh test
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# Programs that several tests run are compiled once.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
# Most of the time goes into compiling programs that run a few times only: LLVM's costly optimizations are left out.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=1"
# One process a core, each test file in one of them; a process need not use more than its core.
exec python -m pytest --numprocesses=auto --dist=loadfile --durations=15 "$@"

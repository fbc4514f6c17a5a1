#!/usr/bin/env bash
# Installs what the tests need and runs them; arguments go to pytest.
#   bash launch/test.sh                the fast tests (minutes)
#   bash launch/test.sh -m slow        the slow proofs
#   PYTHON=3.11 bash launch/test.sh    with another Python, in an environment of its own (launch/environment.sh)
# tests/README.md names the slowest ones and what they prove.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh test
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# Most of the time goes into compiling programs that run a few times only: LLVM's optimizations are left out, and a
# program that several tests run is compiled once, by the process that comes first.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=0"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.1}"
# One process a core. Each begins with a half of the files and takes over tests of the other at the end, so that what is
# prepared for a file is mostly prepared once, and both end together.
exec python -m pytest --numprocesses=auto --dist=worksteal --durations=15 "$@"

#!/usr/bin/env bash
# Installs the dependencies of the tests and runs them. Arguments go to pytest.
#   bash launch/test.sh                lint, format, types, and the fast tests (minutes)
#   bash launch/test.sh -m slow        the slow proofs
#   PYTHON=3.11 bash launch/test.sh    with another Python, in an environment of its own (launch/environment.sh)
# tests/README.md lists the slowest tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh test
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# Most of the time goes into compiling programs that run a few times only. LLVM's optimizations are therefore disabled,
# and a program of several tests is compiled once.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=0"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.1}"
if [ $# -eq 0 ]; then
  python -m ruff check .
  python -m ruff format --check .
  python -m tests.check_types
fi
# One process a core. A process takes tests from another one at the end, so fixtures of a file are mostly set up once.
exec python -m pytest --numprocesses=auto --dist=worksteal --durations=15 "$@"

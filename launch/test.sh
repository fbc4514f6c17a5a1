#!/usr/bin/env bash
# Installs the dependencies of the tests and runs them. Arguments go to pytest.
#   bash launch/test.sh                lint, format, types, and the fast tests (minutes)
#   bash launch/test.sh -m slow        the slow proofs, also with the compiler for TPUs where it exists
#   PYTHON=3.11 bash launch/test.sh    with another Python, in an environment of its own (launch/environment.sh)
# tests/README.md lists the slowest tests.
set -euo pipefail
case "${1:-}" in -h|--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras="test"
[[ "$*" != *slow* || "$(uname -sm)" != "Linux x86_64" ]] || extras="test,tpu"
source launch/environment.sh "$extras"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# Most of the time goes into compiling programs that run a few times only. LLVM's optimizations are therefore disabled,
# and a program of several tests is compiled once, also a short one.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=0"
# The older emitters of fusions compile three times as fast. XLA has them in JAX 0.10, not in 0.12.
older_emitters="$XLA_FLAGS --xla_cpu_use_fusion_emitters=false"
if XLA_FLAGS="$older_emitters" python -m bandtok_jax.launch.check_flags >/dev/null 2>&1; then
  export XLA_FLAGS="$older_emitters"
fi
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0}"
if [ $# -eq 0 ]; then
  python -m ruff check .
  python -m ruff format --check .
  python -m tests.check_types & types=$! # one core for a minute, beside the tests
fi
# One process a core. A process takes tests from another one at the end, so fixtures of a file are mostly set up once.
status=0
python -m pytest --numprocesses=auto --dist=worksteal --durations=60 "$@" || status=$?
[ -z "${types:-}" ] || wait "$types" || { echo "the types have new errors, see above" >&2; status=1; }
exit "$status"

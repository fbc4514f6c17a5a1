# shellcheck shell=bash
# Makes the environment .venv in the source tree and installs the package into it; to be sourced.
#   source launch/environment.sh [EXTRAS]      EXTRAS such as "test" or "test,eval"
# Installs only when setup.cfg, pyproject.toml or EXTRAS changed since the last time, so that it needs no network then.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
extras="${1:-}"

find_python() {
  for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null \
        && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "no Python 3.11 to 3.13 was found: install one, or name it with PYTHON=/path/to/python" >&2
  return 1
}

if [ ! -x "$root/.venv/bin/python" ]; then
  python="$(find_python)" || exit 1
  echo "making the environment $root/.venv with $("$python" --version)"
  "$python" -m venv "$root/.venv"
fi
stamp="$(cat "$root/setup.cfg" "$root/pyproject.toml" | cksum) extras=$extras"
if ! grep -qxF "$stamp" "$root/.venv/installed" 2>/dev/null; then
  echo "installing bandtok_jax ${extras:+with [$extras] }and what it needs (about a minute)"
  "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root${extras:+[$extras]}"
  echo "$stamp" >> "$root/.venv/installed"
fi
export PATH="$root/.venv/bin:$PATH"
# On Linux, large arrays in large pages: a training step on the CPU otherwise spends a seventh of its time on page faults.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

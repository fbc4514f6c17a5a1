# shellcheck shell=bash
# Creates an environment in the source tree and installs the package into it. Source this file.
#   source launch/environment.sh EXTRAS      such as "test" or "train,accelerator"
# "accelerator", the last one, stands for the extra that the accelerator of this machine needs, if it needs one.
# PYTHON=3.11 (or the path of a Python) selects the Python for an environment of its own, .venv-3.11. Without it, the
# environment is .venv with the newest Python of this machine.
# Installs only if setup.cfg, pyproject.toml or EXTRAS have changed, so a second call needs no network.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Prints the command of a Python of the first of these versions that exists. The shims of pyenv may not run.
find_python() {
  local version candidate pyenv
  pyenv="${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo "$HOME/.pyenv")}"
  for version in "$@"; do
    for candidate in "python$version" python3 "$pyenv/versions/$version".*/bin/python; do
      if [ "$(version_of "$candidate")" = "$version" ]; then
        echo "$candidate"
        return
      fi
    done
  done
  echo "no Python ${*} was found: install one, or name it with PYTHON=/path/to/python" >&2
  return 1
}

venv="$root/.venv" python=""
case "${PYTHON:-}" in
  "") [ -x "$venv/bin/python" ] || python="$(find_python 3.13 3.12 3.11)" || exit 1 ;;
  3.1[123]) python="$(find_python "$PYTHON")" || exit 1 ;;
  *) case "$(version_of "$PYTHON")" in
       3.1[123]) python="$PYTHON" ;;
       *) echo "PYTHON=$PYTHON is no Python 3.11 to 3.13: name another one" >&2; exit 1 ;;
     esac ;;
esac
if [ -n "${PYTHON:-}" ] && [ "$(version_of "$venv/bin/python")" != "$(version_of "$python")" ]; then
  venv="$root/.venv-$(version_of "$python")"
fi
if [ ! -x "$venv/bin/python" ]; then
  echo "creating the environment $venv with $("$python" --version)"
  "$python" -m venv "$venv"
fi

extras="$1"
if [[ ",$extras" = *,accelerator ]]; then
  extras="${extras%accelerator}$(bash "$root/launch/accelerator.sh")"
  extras="${extras%,}"
fi
stamp="$(cat "$root/setup.cfg" "$root/pyproject.toml" | cksum) extras=$extras"
if ! grep -qxF "$stamp" "$venv/installed" 2>/dev/null; then
  echo "installing bandtok_jax ${extras:+with [$extras] }and its dependencies (a minute, several with CUDA)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root${extras:+[$extras]}"
  echo "$stamp" >> "$venv/installed"
fi
export PATH="$venv/bin:$PATH"
# Places large arrays in large pages on Linux. A training step on the CPU otherwise spends a seventh of its time on page
# faults.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

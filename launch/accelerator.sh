#!/usr/bin/env bash
# Prints the extra of the package that the accelerator of this machine needs: cuda13, cuda12, tpu, or nothing.
#   bash launch/accelerator.sh [ROOT]        ROOT: the parent of /proc and /sys (default: /)
# JAX's wheels for CUDA 13 require driver 580 and compute capability 7.5, those for CUDA 12 driver 525 and 5.2.
# Prints nothing with JAX_PLATFORMS=cpu.
# https://docs.jax.dev/en/latest/installation.html
set -euo pipefail
case "${1:-}" in -h|--help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
root="${1:-}"
[ "${JAX_PLATFORMS:-}" != cpu ] || exit 0

# Prints the major version of the driver and the lowest compute capability of all GPUs, such as "580 90".
nvidia() {
  local gpus
  if gpus="$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null)"; then
    sed -nE 's/^([0-9]+)\.[^,]*, *([0-9]+)\.([0-9]+) *$/\1 \2\3/p' <<<"$gpus" | sort -k2n | head -n 1
  elif [ -r "$root/proc/driver/nvidia/version" ]; then # in a container without nvidia-smi
    sed -nE '1s/^NVRM.* ([0-9]+)\.[0-9]+[0-9.]* .*$/\1 75/p' "$root/proc/driver/nvidia/version"
  fi
}

# Finds Google's TPU chips on the PCI bus; its network card has another number. The list is JAX's (hardware_utils.py).
tpu() {
  local vendor
  for vendor in "$root"/sys/bus/pci/devices/*/vendor; do
    if [ -r "$vendor" ] && grep -qi '^0x1ae0' "$vendor"; then
      case "$(cat "${vendor%vendor}device")" in 0x0027|0x0056|0x005e|0x0062|0x0063|0x006f|0x0076) return 0 ;; esac
    fi
  done
  return 1
}

read -r driver capability <<<"$(nvidia)" || true
if [ -n "$driver" ] && [ "$driver" -lt 525 ]; then
  echo "the NVIDIA driver $driver is too old for JAX's CUDA: install 525 or later; until then the CPU computes" >&2
elif [ -n "$driver" ]; then
  if [ "$driver" -ge 580 ] && [ "$capability" -ge 75 ]; then echo cuda13; else echo cuda12; fi
elif tpu; then
  echo tpu
fi

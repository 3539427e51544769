#!/usr/bin/env bash
# Collect, on a machine with network, the wheels that a machine without it needs for bench/gpu.sh: what the package and
# its tests need besides torch and the usual scientific packages, what builds it, and the rivals of the benchmarks.
#
#   bash bench/gpu_wheels.sh FOLDER [PYTHON_VERSION [ARCHITECTURE]]
#   then there: SLEEPFM_WHEELS=FOLDER bash bench/gpu.sh OUT
#
# Only pure-Python wheels and those of CPython PYTHON_VERSION (3.12) on Linux are taken, of ARCHITECTURE x86_64 or
# aarch64 (GH200), and no dependencies: those of the packages listed are listed too, and a second torch or NumPy would
# hide the machine's own.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 3 ]; then
  echo "usage: bash bench/gpu_wheels.sh FOLDER [PYTHON_VERSION [ARCHITECTURE]]" >&2
  exit 2
fi
folder=$1
version=${2:-3.12}
architecture=${3:-x86_64}
needed=(pyedflib tyro docstring-parser typeguard edfio pytest pytest-benchmark py-cpuinfo2 pytest-timeout pytest-xdist execnet)
building=(pybind11 scikit-build-core pathspec ninja)
rivals=(memeff inf-cl cut-cross-entropy liger-kernel julius soxr)
platforms=()
for glibc in 28 27 24 17; do platforms+=(--platform "manylinux_2_${glibc}_${architecture}"); done
platforms+=(--platform "manylinux2014_${architecture}" --platform "manylinux1_${architecture}")

mkdir -p "$folder"
fetch() {
  "${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" \
    --implementation cp "${platforms[@]}" --dest "$folder" "$@"
}
failed=()
# One call is quicker; one that fails does not say for which packages there are wheels.
if ! fetch "${needed[@]}" "${building[@]}" "${rivals[@]}"; then
  for package in "${needed[@]}" "${building[@]}" "${rivals[@]}"; do
    fetch "$package" || failed+=("$package")
  done
fi
ls -l "$folder"
if [ ${#failed[@]} -gt 0 ]; then
  echo "error: no wheel was found for: ${failed[*]}" >&2
  exit 1
fi

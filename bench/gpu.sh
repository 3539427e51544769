#!/usr/bin/env bash
# Everything that needs a GPU, in one command: build for the GPU found, tests with CUDA required, compute-sanitizer,
# benchmarks with rivals, measurements of the machine. Writes OUT/gpu.json and OUT/gpu.log and prints a table last;
# needs no network and about eight minutes on 16 cores. Exit status: 0 all passed, 1 something failed, 2 wrong usage.
#
#   bash bench/gpu.sh OUT               on a machine with a GPU
#   bash bench/gpu.sh --rehearse OUT    without one: the same steps, small and on the CPU
#
# PYTHON               the interpreter with torch (python3)
# SLEEPFM_WHEELS       a folder of wheels to install first, from bench/gpu_wheels.sh; nothing is installed without it
# SLEEPFM_BUILD        cmake (default), pip (scikit-build-core, no build isolation) or none (what is built in place)
# SLEEPFM_GPU_BUILT    a folder that keeps the compiled module, so that a later run of the same sources builds nothing
# SLEEPFM_CUDA_ARCHITECTURES   instead of the compute capability of the GPU found
# SLEEPFM_COMMIT       what the results say that they are of, where there is no .git
# SLEEPFM_GPU_STEPS    only these steps, separated by commas, by their names in the table (or what stands before a colon)
# SLEEPFM_GPU_SECONDS  for all steps and the build together (480). Steps run in the order of what matters most and each gets
#                      its own limit or what is left, whichever is less; the table says which were cut, and how to run them
set -uo pipefail

usage() {
  echo "usage: bash bench/gpu.sh [--rehearse] OUT" >&2
  exit 2
}

rehearse=()
if [ "${1:-}" = --rehearse ]; then
  rehearse=(--rehearse)
  shift
fi
[ $# -eq 1 ] || usage
case $1 in -*) usage ;; esac

# The CUDA toolkit where it is usually installed, if not all of it is on the PATH.
for tool in nvcc compute-sanitizer; do
  compiler=$(command -v nvcc)
  for toolkit in "${CUDA_HOME:-}" ${compiler:+"$(dirname "$(dirname "$(readlink -f "$compiler")")")"} /usr/local/cuda; do
    if ! command -v "$tool" >/dev/null && [ -x "$toolkit/bin/$tool" ]; then export PATH=$PATH:$toolkit/bin; fi
  done
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
log=$out/gpu.log
: >"$log"
python=${PYTHON:-python3}
build=${SLEEPFM_BUILD:-cmake}
seconds=${SLEEPFM_GPU_SECONDS:-480}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

fail() {
  echo "error: $*" | tee -a "$log" >&2
  failed=1
}

# ---- Python packages that the machine lacks -------------------------------------------------------------------------
if [ -n "${SLEEPFM_WHEELS:-}" ]; then
  if "$python" -m pip install --quiet --no-index --no-deps --no-compile --find-links "$SLEEPFM_WHEELS" \
    --target "$work/site" "$SLEEPFM_WHEELS"/*.whl >>"$log" 2>&1; then
    export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH} PATH=$PATH:$work/site/bin # cmake and ninja among them
    unset SLEEPFM_WHEELS # a run within the tests finds them installed
  else
    fail "the wheels in $SLEEPFM_WHEELS could not be installed; see $log"
  fi
fi

# ---- a copy of the sources, so that nothing built here stands beside them ---------------------------------------------
tree=$work/tree
mkdir -p "$tree"
if listed=$(git -C "$root" ls-files --cached --others --exclude-standard 2>/dev/null) && [ -n "$listed" ]; then
  (cd "$root" && git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then printf '%s\0' "$file"; fi
  done | xargs -0 cp --parents -t "$tree")
  SLEEPFM_COMMIT=${SLEEPFM_COMMIT:-$(git -C "$root" rev-parse --short=12 HEAD)$(git -C "$root" diff --quiet HEAD || echo +changes)}
else
  (cd "$root" && tar --exclude=./build --exclude=./.git --exclude='*.so' -cf - .) | tar -xf - -C "$tree"
  SLEEPFM_COMMIT=${SLEEPFM_COMMIT:-unknown}
fi
export SLEEPFM_COMMIT

# ---- for which GPU ----------------------------------------------------------------------------------------------------
architectures=${SLEEPFM_CUDA_ARCHITECTURES:-}
if [ -z "$architectures" ]; then
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
  if [ -z "$capability" ]; then
    capability=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())' 2>/dev/null)
  fi
  architectures=${capability/./}
fi
cuda=ON
if [ ${#rehearse[@]} -gt 0 ]; then
  cuda=OFF
elif [ -z "$architectures" ]; then
  fail "neither nvidia-smi nor torch finds a GPU; to try the steps without one: bash bench/gpu.sh --rehearse $1"
  exit 1
fi

# ---- build ------------------------------------------------------------------------------------------------------------
started=$SECONDS
# The build has no step's limit of its own. What is left of all seconds is one, so that a build that hangs is told too.
bounded() {
  timeout -k 10 "$((seconds > SECONDS ? seconds - SECONDS : 1))" "$@"
}
by_cmake() {
  local cmake=(cmake) generator=()
  command -v cmake >/dev/null || cmake=("$python" -m cmake)
  if command -v ninja >/dev/null; then generator=(-G Ninja); fi
  local configure=(-DSLEEPFM_CUDA="$cuda" -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')")
  [ -n "$architectures" ] && configure+=("-DSLEEPFM_CUDA_ARCHITECTURES=$architectures")
  # What is rehearsed is the steps, not the speed of the kernels: they compile in a third of the time.
  [ ${#rehearse[@]} -gt 0 ] && configure+=(-DCMAKE_BUILD_TYPE=None -DSLEEPFM_OPTIMIZATION=-O0)
  bounded "${cmake[@]}" -S "$tree" -B "$work/build" "${generator[@]}" "${configure[@]}" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" &&
    bounded "${cmake[@]}" --build "$work/build" -j "$(nproc)" &&
    "${cmake[@]}" --install "$work/build" --prefix "$tree"
}
by_pip() {
  local options=("--config-settings=cmake.define.SLEEPFM_CUDA=$cuda")
  [ -n "$architectures" ] && options+=("--config-settings=cmake.define.SLEEPFM_CUDA_ARCHITECTURES=$architectures")
  bounded "$python" -m pip wheel --no-index --no-deps --no-build-isolation -w "$work/wheel" "${options[@]}" "$tree" &&
    "$python" -m zipfile -e "$work"/wheel/*.whl "$work/unpacked" &&
    cp "$work"/unpacked/sleepfm_fast/_C.*.so "$tree/sleepfm_fast/"
}
# All that the compiled module depends on, but the compilers.
sources_key() {
  {
    echo "$build $cuda $architectures ${#rehearse[@]}"
    "$python" -c 'import sys; print(sys.version, sys.executable)'
    (cd "$tree" && find CMakeLists.txt pyproject.toml csrc -type f -print0 | sort -z | xargs -0 sha256sum)
  } | sha256sum | cut -c 1-16
}
case $build in
  cmake | pip | none) ;;
  *)
    echo "SLEEPFM_BUILD is $build; choose cmake, pip or none" >&2
    exit 2
    ;;
esac
kept=
if [ -n "${SLEEPFM_GPU_BUILT:-}" ] && [ "$build" != none ]; then kept=$SLEEPFM_GPU_BUILT/$(sources_key); fi
if [ "$build" = none ]; then
  cp "$root"/sleepfm_fast/_C.*.so "$tree/sleepfm_fast/" >>"$log" 2>&1 || true # or an installed one
elif [ -n "$kept" ] && cp "$kept"/_C.*.so "$tree/sleepfm_fast/" 2>/dev/null; then
  build=kept
else
  if [ "$build" = pip ]; then by_pip; else by_cmake; fi >>"$log" 2>&1
  case $? in
    0) # a copy under another name first: a run that is killed keeps all of it or nothing
      if [ -n "$kept" ]; then
        { mkdir -p "$kept.partial" && cp "$tree"/sleepfm_fast/_C.*.so "$kept.partial/" && mv "$kept.partial" "$kept"; } \
          >>"$log" 2>&1 || fail "the compiled module could not be kept in $SLEEPFM_GPU_BUILT; see $log"
      fi
      ;;
    124 | 137) fail "the build was not done after $SECONDS s, the seconds of all steps; see $log" ;;
    *) fail "the build failed; see $log" ;;
  esac
fi
took=$((SECONDS - started))

# ---- the steps --------------------------------------------------------------------------------------------------------
export PYTHONPATH=$tree${PYTHONPATH:+:$PYTHONPATH}
export SLEEPFM_TEST_DATA=${SLEEPFM_TEST_DATA:-$root/../shared/data}
# There, since the folder that this was called from stands before all others on Python's path, and may be the clone.
if ! (cd "$tree" && "$python" -c 'import sleepfm_fast.ops') >>"$log" 2>&1; then
  tail -n 30 "$log" >&2
  fail "sleepfm_fast cannot be imported after the build; see $log"
  printf '{"format": "sleepfm_fast gpu run", "passed": false, "steps": [], "build": {"by": "%s", "seconds": %d}}\n' \
    "$build" "$took" >"$out/gpu.json"
  exit 1
fi
(cd "$tree" && "$python" bench/gpu_steps.py "$out" --work "$work" --deadline "$((seconds - SECONDS))" "${rehearse[@]}" \
  --only "${SLEEPFM_GPU_STEPS:-}" --build "{\"by\": \"$build\", \"seconds\": $took, \"cuda\": \"$cuda\", \"architectures\": \"$architectures\"}") || failed=1
exit "$failed"

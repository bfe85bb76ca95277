#!/bin/bash
# Everything that wants a GPU: tests, files, the sanitizer's four tools on a small part, the benchmark. Takes the folder
# of a build (default: build/cuda-dev), which may come from another machine; says "skipped" where there is no GPU.
#
#     tests/gpu/run.sh [build folder] [words that a benchmark's name must contain]...
set -u

build=${1:-$(dirname "$0")/../../build/cuda-dev}
[ $# -gt 0 ] && shift
build=$(realpath "$build") || exit 1
export LYCORIS_BACKEND_DIR="$build/lib" LYCORIS_REQUIRE_GPU=1 LD_LIBRARY_PATH="$build/lib"
LYCORIS_TEST_DATA=$(realpath "$(dirname "$0")/../data")
export LYCORIS_TEST_DATA
failed=0

if ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
  echo "skipped: no GPU"
  exit 0
fi

echo "== tests"
"$build/bin/lycoris_gpu_test" --gtest_brief=1 || failed=1
"$build/bin/capi_gpu_test" --gtest_brief=1 || failed=1

# The tests of the C functions that run on the CPU everywhere.
for name in weights batches parameters lifetime families golden_modules golden_files golden_rotations peft_forms merge_files; do
  echo "-- capi_${name}_test"
  LYC_TEST_DEVICE=cuda "$build/bin/capi_${name}_test" --gtest_brief=1 2>&1 | tail -n 40
  [ "${PIPESTATUS[0]}" = 0 ] || failed=1
done

echo "== files"
if python3 -c 'import numpy' 2>/dev/null; then
  python3 "$(dirname "$0")/merge_files.py" "$build/bin/lycoris" || failed=1
else
  echo "skipped: no numpy"
fi

echo "== sanitizer"
if command -v compute-sanitizer >/dev/null; then
  small='*EveryKernel*:*RandomRotations*' # they reach every kernel
  for tool in memcheck racecheck initcheck synccheck; do
    echo "-- $tool"
    timeout 120 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 \
      "$build/bin/lycoris_gpu_test" --gtest_brief=1 --gtest_filter="$small" 2>&1 | tail -n 6
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
  done
else
  echo "skipped: no compute-sanitizer"
fi

echo "== benchmark"
"$build/bin/cuda_weight_bench" "$@" || failed=1
exit $failed

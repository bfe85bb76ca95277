#!/bin/bash
# Everything that wants a GPU: tests, files, the sanitizer's four tools on a small part, the benchmark. Takes the folder
# of a build (default: build/cuda-dev), which may come from another machine; says "skipped" where there is no GPU.
# Programs run side by side, since their references keep one processor each busy; the benchmark has the GPU to itself.
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
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

if ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
  echo "skipped: no GPU"
  exit 0
fi

# start NAME COMMAND...: in the background, with an end.
names=() pids=()
start() {
  local name=$1
  shift
  timeout 240 "$@" >"$logs/$name" 2>&1 &
  names+=("$name") pids+=($!)
}
# What those that were started have to say at their ends.
finish() {
  local i status
  for i in "${!pids[@]}"; do
    wait "${pids[i]}"
    status=$?
    ((status == 0)) || failed=1
    echo "-- ${names[i]}: status $status"
    tail -n "$([ $status = 0 ] && echo 2 || echo 40)" "$logs/${names[i]}"
  done
  names=() pids=()
}

echo "== tests"
alone='Gpu.RunsAllocateNothing' # looks at all of the device's memory
shards=8
for ((shard = 0; shard < shards; ++shard)); do
  start "lycoris_gpu_test $shard" env GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$shard \
    "$build/bin/lycoris_gpu_test" --gtest_brief=1 --gtest_filter="-$alone"
done
start capi_gpu_test "$build/bin/capi_gpu_test" --gtest_brief=1
# The tests of the C functions that run on the CPU everywhere.
for name in weights batches parameters lifetime families golden_modules golden_files golden_rotations peft_forms merge_files; do
  start "capi_${name}_test" env LYC_TEST_DEVICE=cuda "$build/bin/capi_${name}_test" --gtest_brief=1
done
finish
start "$alone" "$build/bin/lycoris_gpu_test" --gtest_brief=1 --gtest_filter="$alone"
finish

echo "== sanitizer"
if command -v compute-sanitizer >/dev/null; then
  small='*EveryKernel*:*RandomRotations*' # they reach every kernel
  for tool in memcheck racecheck initcheck synccheck; do
    start "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 \
      "$build/bin/lycoris_gpu_test" --gtest_brief=1 --gtest_filter="$small"
  done
  finish
else
  echo "skipped: no compute-sanitizer"
fi

echo "== files"
if python3 -c 'import numpy' 2>/dev/null; then
  python3 "$(dirname "$0")/merge_files.py" "$build/bin/lycoris" || failed=1
else
  echo "skipped: no numpy"
fi

echo "== benchmark"
"$build/bin/cuda_weight_bench" "$@" || failed=1
exit $failed

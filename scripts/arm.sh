#!/usr/bin/env bash
# The CPU back end for Arm, which no machine of ours is: its sources compile, and with --test its tests run under QEMU.
set -euo pipefail
cd "$(dirname "$0")/.."

objects=build/arm
mkdir -p "$objects/include"
# Of the system's headers only those of libraries without an architecture.
for library in hwy gtest gmock; do ln -sfn "/usr/include/$library" "$objects/include/$library"; done
ln -sfn /usr/include/eigen3/Eigen "$objects/include/Eigen"
compile=(ccache aarch64-linux-gnu-g++ -std=c++17 -O1 -ffp-contract=off -pthread -Wall -Wextra
  -Iinclude -Isrc -Itests -isystem "$objects/include" -DEIGEN_NO_DEBUG -DEIGEN_MPL2_ONLY '-DLYCORIS_VERSION="arm"')

sources=(src/cpu/*.cpp src/base/threads.cpp src/base/tensor.cpp)
if [[ ${1:-} == --test ]]; then
  sources+=(tests/cpu/*_test.cpp tests/reference/weight_reference.cpp /usr/src/googletest/googletest/src/gtest-all.cc
    /usr/src/googletest/googlemock/src/gmock-all.cc /usr/src/googletest/googletest/src/gtest_main.cc)
  compile+=(-I/usr/src/googletest/googletest -I/usr/src/googletest/googlemock)
fi
compiled=()
for source in "${sources[@]}"; do
  compiled+=("$objects/$(basename "$source").o")
  "${compile[@]}" -c "$source" -o "${compiled[-1]}"
done
[[ ${1:-} == --test ]] || exit 0
aarch64-linux-gnu-g++ -static -pthread -o "$objects/cpu_test" "${compiled[@]}" 2>/dev/null
qemu-aarch64-static "$objects/cpu_test" --gtest_brief=1

#!/usr/bin/env bash
# The exercise of CONTRIBUTING, "Add an algorithm": apply docs/exercise/add-an-algorithm.patch to a copy of the working
# tree, build it under the sanitizers, and run its test. Shows that a family takes one file, one line and one test.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/stages.sh

copy=build/exercise
mkdir -p "$copy"
find "$copy" -mindepth 1 -maxdepth 1 -not -name build -exec rm -r {} + # an earlier run's; what it built is kept
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from - | tar --extract --directory "$copy"
patch --directory "$copy" --strip 1 --forward --silent <docs/exercise/add-an-algorithm.patch
cmake -S "$copy" --preset asan >/dev/null
cmake --build "$copy/build/asan" --target algo_tilt_test algo_registry_test
ctest --test-dir "$copy/build/asan" --no-tests=error --output-on-failure --tests-regex '^algo_(tilt|registry)_test$'

# shellcheck shell=bash
# Sourced by .ci/run, tests/full and scripts/demo.sh: stages with their times, and compilers behind ccache.

export CCACHE_DIR=${CCACHE_DIR:-$PWD/.cache/ccache}
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1 # another clone finds what this one compiled
export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_CUDA_COMPILER_LAUNCHER=ccache
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}

# stage NAME COMMAND...: run the command in a shell of its own, say how long it took, stop everything if it failed.
stage() {
  local name=$1 begin=$SECONDS status
  shift
  printf '\n== %s\n' "$name"
  set +e # not `if`: inside a condition bash would ignore the command's own -e
  (
    set -e
    "$@"
  )
  status=$?
  set -e
  if ((status)); then
    printf '== %s: FAILED after %d s\n' "$name" $((SECONDS - begin))
    exit "$status"
  fi
  printf '== %s: %d s\n' "$name" $((SECONDS - begin))
}

# run_tests PRESET [OPTION...]: fails if no test ran, too.
run_tests() {
  local preset=$1
  shift
  ctest --test-dir "build/$preset" --no-tests=error --output-on-failure --parallel "$CMAKE_BUILD_PARALLEL_LEVEL" "$@"
}

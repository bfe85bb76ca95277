#!/usr/bin/env bash
# Install what building and testing need, from Debian's packages. Says nothing when all is there.
#
#   scripts/setup.sh [tests] [bindings] [cuda] [arm] [clean]
#
# Without a part: what the library, the program and their own tests need. tests: also the linters and the tools of the
# ABI gates. bindings: also SWIG and the languages. cuda: what scripts/setup-cuda.sh needs. arm: what scripts/arm.sh
# --test needs. clean: for the stage of tests/full that starts from an empty system.
set -euo pipefail

declare -A packages=(
  [core]="g++ cmake ninja-build pkg-config ccache python3
          libhwy-dev libeigen3-dev nlohmann-json3-dev libcli11-dev libgtest-dev libgmock-dev"
  [tests]="git binutils clang clang-format clang-tidy libclang-rt-14-dev abigail-tools shellcheck
           g++-aarch64-linux-gnu"
  [bindings]="swig python3-dev python3-venv python3-numpy python3-pytest mono-mcs mono-runtime
              libmono-system-core4.0-cil"
  [cuda]="python3-pip"
  [arm]="qemu-user-static googletest"
  [clean]="debootstrap"
)

is_installed() { [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

missing=()
for part in core "$@"; do
  if [[ -z ${packages[$part]:-} ]]; then
    echo "unknown part '$part'; there are: ${!packages[*]}" >&2
    exit 2
  fi
  for package in ${packages[$part]}; do
    is_installed "$package" || missing+=("$package")
  done
  # One from elsewhere may be there already. Debian's package `cargo` is too old for the crates, this one is not.
  [[ $part != bindings ]] || command -v cargo >/dev/null || missing+=(cargo-web)
done
((${#missing[@]})) || exit 0

as_root() {
  if ((EUID == 0)); then env "$@"; else sudo env "$@"; fi
}
install() {
  as_root DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${missing[@]}" </dev/null
}

echo "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The lists of packages are fetched only when those at hand are missing, or too old to install from.
if ! install >"$log" 2>&1 && ! { as_root apt-get update && install; } >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi

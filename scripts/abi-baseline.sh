#!/usr/bin/env bash
# The binary interface, as abidw sees it, against the one in tests/abi/lycoris-0.abi.
#
#   scripts/abi-baseline.sh [LIBRARY]          write the baseline anew (for a commit that begins "abi:")
#   scripts/abi-baseline.sh --check [LIBRARY]  compare; any difference but added functions is a failure
#
# LIBRARY defaults to the release build's. It needs debug information: without it changed parameter types go unseen.
set -euo pipefail
cd "$(dirname "$0")/.."

check=false
if [[ ${1:-} == --check ]]; then
  check=true
  shift
fi
library=${1:-build/release/lib/liblycoris.so}
baseline=tests/abi/lycoris-0.abi

# Only what users can see, and nothing that differs from one machine to the next.
describe() {
  abidw --exported-interfaces-only --drop-undefined-syms --drop-private-types --headers-dir include \
    --no-show-locs --no-corpus-path --no-comp-dir-path "$library" |
    sed "s#path='[^']*/src/#path='src/#" >"$1"
}

# grep reads to the end: readelf would fail on a closed pipe.
if ! readelf --sections --wide "$library" | grep '\.debug_info' >/dev/null; then
  echo "$library has no debug information" >&2
  exit 1
fi
if ! $check; then
  describe "$baseline"
  exit
fi
current=$(mktemp)
trap 'rm -f "$current"' EXIT
describe "$current"
# No suppression lets growing structs grow: abidiff 2.2 then lets pass a field that changed its type, too. Who appends a
# field writes the baseline anew, and tests/abi/layout.c shows that the other fields stayed where they were.
abidiff --no-added-syms "$baseline" "$current"

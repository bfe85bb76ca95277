#!/usr/bin/env bash
# The main job, from nothing: build the program, make a base model and two adapters, look at them, merge them.
#
#   scripts/demo.sh            a small base
#   scripts/demo.sh --large    one of 5.1 GB, with time, throughput and memory, and the time of `cp` beside it
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/stages.sh

large=()
files=build/demo
if [[ ${1:-} == --large ]]; then
  large=(--large)
  files=build/large
fi

build_program() {
  cmake --preset release >/dev/null
  cmake --build --preset release --target lycoris_cli make_demo_files
}

make_files() {
  mkdir -p "$files"
  build/release/bin/make_demo_files "$files" "${large[@]}"
}

look() {
  local file
  for file in base style detail; do
    build/release/bin/lycoris inspect "$files/$file.safetensors" | sed -n 1,8p
  done
}

merge() {
  build/release/bin/lycoris merge "$files/base.safetensors" "$files/style.safetensors" "$files/detail.safetensors" \
    --output "$files/merged.safetensors" --multiplier 0.8 --multiplier 0.5 --force
}

# What the disk allows: the same bytes copied, and on the disk in the end as a merge is.
copy() {
  cp --reflink=never "$files/base.safetensors" "$files/copy"
  sync "$files/copy"
  rm "$files/copy"
}

stage setup scripts/setup.sh
stage build build_program
stage files make_files
stage inspect look
stage merge merge
((!${#large[@]})) || stage copy copy

#!/usr/bin/env bash
# The main job, from nothing: build the program, make a small base model and an adapter, merge the one into the other.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/stages.sh

build_program() {
  cmake --preset release >/dev/null
  cmake --build --preset release --target lycoris_cli make_demo_files
}

merge() {
  local files=build/demo
  mkdir -p "$files"
  build/release/bin/make_demo_files "$files"
  build/release/bin/lycoris merge "$files/base.safetensors" "$files/style.safetensors" "$files/detail.safetensors" \
    --output "$files/merged.safetensors" --multiplier 0.8 --multiplier 0.5 --force
}

stage setup scripts/setup.sh
stage build build_program
stage merge merge

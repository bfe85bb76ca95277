#!/bin/sh
# A private CUDA toolkit (and a CMake that knows it) in build/cuda-toolkit, by pip, without root. Who has a toolkit and
# CMake 3.31 or newer needs none of this. Prints the environment to build with:
#
#     eval "$(scripts/setup-cuda.sh)"
#     cmake --preset cuda && cmake --build --preset cuda
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
toolkit=$root/build/cuda-toolkit
cuda=$toolkit/nvidia/cu13

if [ ! -e "$toolkit/.complete" ]; then
  rm -rf "$toolkit"
  mkdir -p "$toolkit"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$toolkit" \
    'cuda-toolkit[nvcc,cudart,cccl,crt]==13.0.*' 'cmake>=4,<5' >&2
  # The wheels have neither lib64, where CMake and nvcc look, nor the unversioned names that linkers look for.
  ln -s lib "$cuda/lib64"
  for library in "$cuda"/lib/lib*.so.*; do
    name=$(basename "$library")
    ln -sf "$name" "$cuda/lib/${name%%.so.*}.so"
  done
  touch "$toolkit/.complete"
fi

echo "export PATH='$toolkit/cmake/data/bin:$cuda/bin':\"\$PATH\" CUDACXX='$cuda/bin/nvcc' CUDAToolkit_ROOT='$cuda'"

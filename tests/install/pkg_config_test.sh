#!/usr/bin/env bash
# Usage: pkg_config_test.sh LIBDIR SOURCE PROGRAM VERSION: build and run a consumer by what pkg-config says.
set -euo pipefail
libdir=$1 source=$2 program=$3 version=$4

export PKG_CONFIG_PATH=$libdir/pkgconfig
[[ $(pkg-config --modversion lycoris) == "$version" ]]
read -ra flags <<<"$(pkg-config --cflags --libs lycoris)"
cc "$source" "${flags[@]}" -o "$program"
LD_LIBRARY_PATH=$libdir "$program" "$version"

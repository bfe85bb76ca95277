"""Sparse safetensors files: any size in no time. As a program: large_files.py FOLDER makes a base of 1 GB, an adapter."""

import json
import struct
import sys
from pathlib import Path

SIZES = {"BF16": 2, "F32": 4}


def write_zeros(path, shapes, dtype="BF16"):
    header, offset = {}, 0
    for name, shape in shapes.items():
        length = SIZES[dtype]
        for extent in shape:
            length *= extent
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def write_large_merge(base, adapter):
    """A base of 1 GB, and a LoHa for all of it."""
    shapes = {"a": [8192, 8], "b": [8, 8192]}
    write_zeros(base, {f"x{i}.weight": [8192, 8192] for i in range(8)})
    write_zeros(adapter, {f"lycoris_x{i}.hada_w{h}_{s}": shapes[s] for i in range(8) for h in "12" for s in "ab"})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_large_merge(folder / "base.safetensors", folder / "adapter.safetensors")

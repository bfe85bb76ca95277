#!/usr/bin/env python3
"""lycoris merge --device cuda beside the CPU's result: merge_files.py LYCORIS [GIGABYTES].

Makes a base and adapters of many families in a temporary folder (TMPDIR says where), merges them on both, compares every
element, merges again with another number of threads for the same bytes, and interrupts one merge. Prints times, and what
copying the base takes on the same disk. Needs numpy.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIDE = 5120  # of every large weight
RNG = np.random.default_rng(1)
DTYPES = {"BF16": (np.uint16, 2.0**-7), "F16": (np.float16, 2.0**-10), "F32": (np.float32, 2.0**-20)}


def to_bf16(values):
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_float(array, dtype):
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array.astype(np.float32)


def stored(values, dtype):
    return to_bf16(values) if dtype == "BF16" else values.astype(DTYPES[dtype][0])


def write(path, tensors):
    """tensors: name -> (dtype, shape, function that gives the array)."""
    header, offset = {}, 0
    for name, (dtype, shape, _) in tensors.items():
        size = int(np.prod(shape)) * np.dtype(DTYPES[dtype][0]).itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, make in tensors.values():
            file.write(np.ascontiguousarray(make()).data)


def read_header(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def tensor(shape, dtype="F32", scale=1.0):
    values = stored(RNG.standard_normal(shape, np.float32) * np.float32(scale), dtype)
    return dtype, shape, lambda: values


def family(number, out, columns, kernel=()):
    """Factors by suffix: every family that has a delta of any matrix, by turns."""
    flat, spatial = columns, int(np.prod(kernel)) if kernel else 1
    wide = (4, columns // spatial, *kernel)
    kinds = [
        lambda: {"lora_up.weight": tensor((out, 4, *(1 for _ in kernel)), "BF16"), "lora_down.weight": tensor(wide, "BF16"),
                 "alpha": tensor((), "F32")},
        lambda: {f"hada_w{h}_{s}": tensor(shape, "F16", 0.5)
                 for h in "12" for s, shape in (("a", (out, 3)), ("b", (3, flat)))},
        lambda: {"lokr_w1": tensor((8, 8)), "lokr_w2": tensor((out // 8, columns // spatial // 8, *kernel), "F32", 0.1)},
        lambda: {"lora_up.weight": tensor((out, 4, *(1 for _ in kernel))), "lora_down.weight": tensor(wide),
                 "dora_scale": ("F32", (out, *(1 for _ in range(1 + len(kernel)))),
                                lambda: np.linspace(1, 20, out, dtype=np.float32))},
        lambda: {"oft_blocks": tensor((out // 16, 16, 16), "F32", 0.05)},
        lambda: {"diff": tensor((out, columns // spatial, *kernel), "BF16", 0.01)},
    ]
    return kinds[number % len(kinds)]()


def layers(folder, shapes, dtype):
    """A base with weights of these shapes, and two adapters on all of it."""
    block = stored(RNG.standard_normal(max(int(np.prod(s)) for s in shapes.values()), np.float32), dtype)
    base, first, second = {}, {}, {}
    for number, (name, shape) in enumerate(shapes.items()):
        size = int(np.prod(shape))
        base[f"{name}.weight"] = (dtype, shape, lambda n=number, s=size, sh=shape: np.roll(block, n * 7919)[:s].reshape(sh))
        out, columns, kernel = shape[0], size // shape[0], shape[2:]
        for suffix, value in family(0, out, columns, kernel).items():
            first[f"lycoris_{name}.{suffix}"] = value
        for suffix, value in family(number, out, columns, kernel).items():
            second[f"lycoris_{name}.{suffix}"] = value
    base["untouched"] = (dtype, (1 << 20,), lambda: block[: 1 << 20] if len(block) >= 1 << 20 else np.resize(block, 1 << 20))
    write(folder / "base.safetensors", base)
    write(folder / "first.safetensors", first)
    write(folder / "second.safetensors", second)


def merge(program, folder, out, *options):
    begin = time.monotonic()
    inputs = [folder / f"{name}.safetensors" for name in ("base", "first", "second")]
    result = subprocess.run([program, "merge", *map(str, inputs), "-o", str(folder / out), "--json", "--force", "-m", "0.7",
                             "-m", "0.5", *options], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"lycoris merge {' '.join(options)}: {result.stderr}")
    return time.monotonic() - begin, json.loads(result.stdout)["seconds"]


def compare(name, path, reference):
    """Every element within one unit in the last place of its type, and float32's own error at the size of the weights."""
    header, begin = read_header(reference)
    ours, ours_begin = read_header(path)
    assert header == ours, "the headers differ"
    differing, total, worst = 0, 0, 0.0
    for key, info in header.items():
        kind, unit = DTYPES[info["dtype"]]
        first, last = info["data_offsets"]
        count = (last - first) // np.dtype(kind).itemsize
        got, want = (np.fromfile(p, kind, count, offset=b + first) for p, b in ((path, ours_begin), (reference, begin)))
        same = got.view(f"u{np.dtype(kind).itemsize}") == want.view(f"u{np.dtype(kind).itemsize}")
        total += count
        if same.all():
            continue
        assert key != "untouched", "an untouched tensor was changed"
        got, want = to_float(got[~same], info["dtype"]), to_float(want[~same], info["dtype"])
        differing += len(got)
        error = np.abs(got - want) / (unit * np.maximum(np.abs(got), np.abs(want)) + 2e-5)
        worst = max(worst, float(error.max()))
        if not worst <= 1:
            sys.exit(f"FAILED {name}: {key} is {float(got[error.argmax()])}, on the CPU {float(want[error.argmax()])}")
    print(f"{name}: {total} elements, {differing} differ ({100 * differing / total:.3f} %), worst {worst:.2f} of allowed")


def same_bytes(first, second):
    return subprocess.run(["cmp", str(first), str(second)]).returncode == 0


def interrupt(program, folder):
    out = folder / "interrupted.safetensors"
    inputs = [str(folder / f"{name}.safetensors") for name in ("base", "first", "second")]
    process = subprocess.Popen([program, "merge", *inputs, "-o", str(out), "--device", "cuda"], stderr=subprocess.PIPE,
                               text=True)
    process.stderr.readline()  # it has begun
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    if process.returncode == 0:
        print("interrupt: the merge was faster")
    elif "cancelled" not in error or out.exists():
        sys.exit(f"FAILED interrupt: {error}")
    else:
        print("interrupt: nothing left behind")


def run_case(program, name, shapes, dtype, *options):
    with tempfile.TemporaryDirectory(prefix="lycoris-gpu-") as scratch:
        folder = Path(scratch)
        layers(folder, shapes, dtype)
        size = (folder / "base.safetensors").stat().st_size / 1e9
        cpu = merge(program, folder, "cpu.safetensors", *options)
        times = [merge(program, folder, f"cuda{i}.safetensors", "--device", "cuda:0", *more, *options)
                 for i, more in enumerate(((), ("--threads", "3"), ()))]
        compare(name, folder / "cuda0.safetensors", folder / "cpu.safetensors")
        for again in (1, 2):
            if not same_bytes(folder / "cuda0.safetensors", folder / f"cuda{again}.safetensors"):
                sys.exit(f"FAILED {name}: run {again} gave other bytes")
        begin = time.monotonic()
        subprocess.run(f"cp {folder}/base.safetensors {folder}/copy && sync {folder}/copy", shell=True, check=True)
        copy = time.monotonic() - begin
        best = min(inner for _, inner in times)
        print(f"  {size:.2f} GB: CPU {cpu[1]:.2f} s; CUDA {best:.2f} s ({size / best:.2f} GB/s), the whole program "
              f"{min(outer for outer, _ in times):.2f} s, with 3 threads {times[1][1]:.2f} s; cp and sync {copy:.2f} s")
        if size > 0.5:
            interrupt(program, folder)


def main():
    program = os.path.abspath(sys.argv[1])
    gigabytes = float(sys.argv[2]) if len(sys.argv) > 2 else 1.2
    small = {f"x{i}": shape for i, shape in enumerate(
        [(48, 64), (64, 48), (80, 80), (160, 96), (32, 32), (16, 48), (48, 16, 3, 3), (64, 32, 3, 3), (16, 16, 3),
         (32, 64, 1, 1), (32, 16, 3, 3), (96, 32, 3, 3)])}
    for dtype in DTYPES:
        run_case(program, f"small {dtype}", small, dtype)
    run_case(program, "small BF16 to F32", small, "BF16", "--dtype", "f32")
    count = max(6, round(gigabytes * 1e9 / (2 * SIDE * SIDE)))
    run_case(program, "large BF16", {f"x{i}": (SIDE, SIDE) for i in range(count)}, "BF16")


if __name__ == "__main__":
    main()

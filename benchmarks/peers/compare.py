"""Deltas and merges on two CPU threads: ours beside PyTorch with LyCORIS 4.1.3, in one run on one machine.

    compare.py LYCORIS_WEIGHT_BENCH [START OF A LINE]

Run it pinned (`taskset --cpu-list 0,1`) in an environment with `torch` and `lycoris_lora==4.1.3`, on a quiet machine.
Ours is the best of the benchmark program, run before and after the peer; of the peer, the best (which the ratio takes)
and the median are shown. Both take several weights by turns, and as many results are kept, so that neither finds them in
a cache.
share: of the roofline that the benchmark program measures, for ours.
"""

import collections
import itertools
import math
import statistics
import sys
import time

import torch
from methods import METHODS, computes, module_of
from ours import begin, beside

REPEATS = 15
SECONDS = 4.0  # at most, for one row
COLD_BYTES = 100e6  # of weights, as the benchmark program has it

SHAPES = {"3072x3072": (3072, 3072), "12288x3072": (12288, 3072), "1280x1280x3x3": (1280, 1280, 3)}
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def peer_module(method, shape, dtype):
    out, inner, *kernel = shape
    layer = (torch.nn.Conv2d(inner, out, kernel[0], padding=1, bias=False) if kernel
             else torch.nn.Linear(inner, out, bias=False)).to(dtype)
    return module_of(method, layer, dtype), layer.weight.shape


def peer_times(method, shape, dtype, op):
    size = math.prod(shape[:2]) * (shape[2] ** 2 if len(shape) > 2 else 1) * dtype.itemsize
    modules = [peer_module(method, shape, dtype) for _ in range(max(2, int(COLD_BYTES / size)))]
    results = collections.deque(maxlen=len(modules))
    times, begin = [], time.perf_counter()
    with torch.inference_mode():
        while len(times) < REPEATS and (len(times) < 3 or time.perf_counter() - begin < SECONDS):
            module, weight_shape = modules[0]
            modules.append(modules.pop(0))
            call = module.get_diff_weight if op == "diff" else module.get_merged_weight
            start = time.perf_counter()
            results.append(call(1.0, weight_shape))
            times.append(time.perf_counter() - start)
    return min(times) * 1e3, statistics.median(times) * 1e3


def compare(program, method, shape, dtype):
    def peer(ops):
        return {op: peer_times(method, SHAPES[shape], DTYPES[dtype], op) for op in ops}

    for op, milliseconds, share, (best, median) in beside(program, f"{method} {shape} {dtype}", peer):
        print(f"{method:<19} {shape:<14} {dtype:<5} {op:<6} {milliseconds:8.2f} {share:4d} % {best:8.2f} {median:8.2f} "
              f"{best / milliseconds:6.1f}", flush=True)


def main(program, pattern=""):
    begin(program)
    print(f"{'method':<19} {'shape':<14} {'type':<5} {'op':<6} {'ours ms':>8} {'share':>6} {'peer ms':>8} {'median':>8} {'ratio':>6}")
    for shape, method, dtype in itertools.product(SHAPES, METHODS, DTYPES):
        if computes(method, SHAPES[shape][2:], dtype) and f"{method} {shape} {dtype}".startswith(pattern):
            compare(program, method, shape, dtype)


main(*sys.argv[1:])

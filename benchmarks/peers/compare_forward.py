"""Forward with an adapter on two CPU threads: ours beside PyTorch with LyCORIS 4.1.3, in one run on one machine.

    compare_forward.py LYCORIS_FORWARD_BENCH [START OF A LINE]

Run it as compare.py. The peer's forward is its modules' own, which rebuild the difference and run two operators; "base"
is PyTorch's layer alone. share: of the multiply-add rate, for ours, before and after the peer.
"""

import itertools
import statistics
import sys
import time

import torch
from methods import METHODS, computes, module_of
from ours import begin, beside

REPEATS = 9
SECONDS = 4.0  # at most, for one row

LAYERS = {  # as lycoris_forward_bench calls them: out, in, kernel, shape of x
    "1 12288x3072": (12288, 3072, 0, (1, 3072)),
    "512 3072x3072": (3072, 3072, 0, (512, 3072)),
    "512 12288x3072": (12288, 3072, 0, (512, 3072)),
    "16x16 1280x1280x3x3": (1280, 1280, 3, (1, 1280, 16, 16)),
    "32x32 1280x1280x3x3": (1280, 1280, 3, (1, 1280, 32, 32)),
}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def peer_times(method, layer, dtype):
    out, inner, kernel, shape = LAYERS[layer]
    base = torch.nn.Conv2d(inner, out, kernel, padding=1) if kernel else torch.nn.Linear(inner, out)
    base = base.to(dtype)
    if method != "base":
        module = module_of(method, base, dtype)
        module.apply_to()
        module.eval()
    x, times, begin = torch.randn(shape).to(dtype), [], time.perf_counter()
    with torch.inference_mode():
        base(x)
        while len(times) < REPEATS and (len(times) < 3 or time.perf_counter() - begin < SECONDS):
            start = time.perf_counter()
            base(x)
            times.append(time.perf_counter() - start)
    return min(times) * 1e3, statistics.median(times) * 1e3


def compare(program, method, layer, dtype):
    def peer(paths):
        return dict.fromkeys(paths, peer_times(method, layer, DTYPES[dtype]))

    for path, milliseconds, share, (best, median) in beside(program, f"{method} {layer} {dtype}", peer):
        print(f"{method:<19} {layer:<20} {dtype:<5} {path:<8} {milliseconds:8.2f} {share:4d} % {best:8.2f} {median:8.2f} "
              f"{best / milliseconds:6.2f}", flush=True)


def main(program, pattern=""):
    begin(program)
    print(f"{'method':<19} {'layer':<20} {'type':<5} {'path':<8} {'ours ms':>8} {'share':>6} {'peer ms':>8} {'median':>8} {'ratio':>6}")
    for layer, method, dtype in itertools.product(LAYERS, ("base", *METHODS), DTYPES):
        if (method == "base" or computes(method, LAYERS[layer][2], dtype)) and f"{method} {layer} {dtype}".startswith(pattern):
            compare(program, method, layer, dtype)


main(*sys.argv[1:])

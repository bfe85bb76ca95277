"""Forward with an adapter on two CPU threads: ours beside PyTorch with LyCORIS 4.1.3, in one run on one machine.

    compare_forward.py LYCORIS_FORWARD_BENCH [START OF A LINE]

Run it as compare.py. The peer's forward is its modules' own, which rebuild the difference and run two operators; "base"
is PyTorch's layer alone. share: of the multiply-add rate, for ours.
"""

import os
import re
import statistics
import subprocess
import sys
import time

import torch
from methods import computes, module_of

THREADS = 2
REPEATS = 9
SECONDS = 4.0  # at most, for one row

LAYERS = {  # as lycoris_forward_bench calls them: out, in, kernel, shape of x
    "512 3072x3072": (3072, 3072, 0, (512, 3072)),
    "512 12288x3072": (12288, 3072, 0, (512, 3072)),
    "16x16 1280x1280x3x3": (1280, 1280, 3, (1, 1280, 16, 16)),
    "32x32 1280x1280x3x3": (1280, 1280, 3, (1, 1280, 32, 32)),
}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
LINE = re.compile(r"^(?P<method>\S.*?)\s{2,}(?P<layer>\d+\S* \d\S*x\S+)\s+(?P<dtype>f32|bf16)\s+(?P<path>\w+)"
                  r"\s+(?P<ms>[\d.]+) ms.*?(?P<share>\d+) %")


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


def main(program, pattern):
    torch.set_num_threads(THREADS)
    output = subprocess.run([program, str(THREADS), *pattern], check=True, capture_output=True, text=True).stdout
    print(output.splitlines()[0])
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print(f"{'method':<19} {'layer':<20} {'type':<5} {'path':<8} {'ours ms':>8} {'share':>6} {'peer ms':>8} {'median':>8} {'ratio':>6}")
    for line in map(LINE.match, output.splitlines()):
        if line and (line["method"] == "base" or computes(line["method"], LAYERS[line["layer"]][2], line["dtype"])):
            ours = float(line["ms"])
            best, median = peer_times(line["method"], line["layer"], DTYPES[line["dtype"]])
            print(f"{line['method']:<19} {line['layer']:<20} {line['dtype']:<5} {line['path']:<8} {ours:8.2f} "
                  f"{line['share']:>4} % {best:8.2f} {median:8.2f} {best / ours:6.1f}", flush=True)


main(sys.argv[1], sys.argv[2:])

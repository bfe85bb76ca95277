"""What our benchmark programs measure, run from here so that it can be done row by row, beside the peer."""

import os
import re
import subprocess

import torch

THREADS = 2
LINE = re.compile(r"\S.*\s(?P<what>\w+)\s+(?P<ms>[\d.]+) ms.*?(?P<share>\d+) %")


def output(program, row):
    return subprocess.run([program, str(THREADS), row], check=True, capture_output=True, text=True).stdout


def begin(program):
    """Threads for the peer, and what there is to know about the machine."""
    torch.set_num_threads(THREADS)
    print(output(program, "none"), end="")
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")


def beside(program, row, peer):
    """Ours before and after the peer: (operation or path, milliseconds, share, what `peer` returns for it)."""
    def times():
        return {m["what"]: (float(m["ms"]), int(m["share"])) for m in map(LINE.match, output(program, row).splitlines()) if m}

    before = times()
    if not before:  # a shape that the method does not have
        return
    peers = peer(before)
    after = times()
    for what in before:
        yield what, *min(before[what], after[what]), peers[what]

"""Deltas and merges of bf16 weights on a GPU: ours beside addmm_, torch.compile and LyCORIS 4.1.3, in one run.

    compare_cuda.py CUDA_WEIGHT_BENCH [WORD...]

Run it in an environment with `torch` (for CUDA) and `lycoris_lora==4.1.3`. Device time by graph replay over buffers that
rotate beyond the L2 cache, results too, as the benchmark program takes it for ours; the median of ten replays. A peer's formula is
LyCORIS 3.3's, compiled ("compile"), or an op of 4.1.3's Triton back end with the base folded in ("lycoris"), tuned by
its first calls. Every peer's result is checked against float32.
"""

import collections
import re
import subprocess
import sys

import torch

GAMMA, FACTOR, OFT_BLOCK, BOFT_BLOCK = 0.375, 16, 32, 24
CALLS, REPLAYS = 48, 10
LINE = re.compile(r"^(?P<shape>\d\S*|\w+, \d+ weights) (?P<method>.*?) bf16/bf16 r(?P<rank>\d+) "
                  r"(?P<op>delta|new|in-place)\s+(?P<floor>[\d.]+)\s+(?P<us>[\d.]+)\s")


def random(*shape, scale=0.1):
    return torch.randn(*shape, device="cuda", dtype=torch.float32).mul_(scale).bfloat16()


# -- formulas: of the weight (None for a delta) and the factors, in the type that these have ------------------------------


def with_base(base, delta):
    return delta if base is None else base + delta


def locon(base, up, down):
    return with_base(base, GAMMA * (up @ down))


def loha(base, up1, down1, up2, down2):
    return with_base(base, GAMMA * ((up1 @ down1) * (up2 @ down2)))


def lokr(base, left, right):
    blocks = (GAMMA * left)[:, None, :, None] * right[None, :, None, :]
    rows, columns = left.shape[0] * right.shape[0], left.shape[1] * right.shape[1]
    if base is None:
        return blocks.reshape(rows, columns)
    return (base.view(blocks.shape) + blocks).view(rows, columns)


def lokr_rank(base, left, up, down):
    return lokr(base, left, up @ down)


def core_product(up, core, down):
    return torch.einsum("or,rsk,si->oik", up, core, down).flatten(1)


def locon_tucker(base, up, core, down):
    return with_base(base, GAMMA * core_product(up, core, down))


def loha_tucker(base, *factors):
    return with_base(base, GAMMA * (core_product(*factors[:3]) * core_product(*factors[3:])))


def lokr_tucker(base, left, up, core, down):
    return lokr(base, left, core_product(up, core, down))


def ia3(base, vector):
    return base + base * (GAMMA * vector)


def glora(base, up, down):
    return base + GAMMA * ((base @ up) @ down)


def dora(delta, axis):
    def formula(base, magnitude, *factors):
        merged = delta(base, *factors).float()
        norm = merged.square().sum(axis, keepdim=True).sqrt() + torch.finfo(torch.float32).eps
        return (merged * (magnitude.float() / norm)).to(base.dtype)

    return formula


def cayley(blocks):
    skew = blocks - blocks.mT
    eye = torch.eye(blocks.shape[-1], device=blocks.device, dtype=blocks.dtype)
    return torch.linalg.solve(eye - skew, eye + skew, left=False)


def oft(base, blocks):
    turned = torch.einsum("knm,kn...->km...", cayley(blocks.float()),
                          base.float().view(blocks.shape[0], blocks.shape[1], -1))
    return turned.reshape(base.shape).to(base.dtype)


def boft(base, blocks):
    weight, turns = base.float(), cayley(blocks.float())
    for stage in range(blocks.shape[0]):
        width = 2**stage * (blocks.shape[-1] // 2)
        weight = weight.unflatten(0, (-1, 2, width)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, blocks.shape[-1]))
        weight = torch.einsum("bij,bj...->bi...", turns[stage], weight)
        weight = weight.flatten(0, 1).unflatten(0, (-1, width, 2)).transpose(1, 2).flatten(0, 2)
    return weight.to(base.dtype)


# -- LyCORIS 4.1.3's ops --------------------------------------------------------------------------------------------------


def lycoris_ops():
    from lycoris.kernels.ops import get_ops

    ops = get_ops("triton")
    low_rank = lambda base, up, down: ops.lora_merge_fwd(up, down, None, None, base, GAMMA, "plain")
    hadamard = lambda base, a, b, c, d: ops.lora_merge_fwd(a, b, c, d, base, GAMMA, "hada")
    whole = lambda base, left, right: ops.lokr_full_merge_fwd(left, right, base, GAMMA)
    ranked = lambda base, left, up, down: ops.lokr_merge_fwd(
        left, None, up, down, (*left.shape, up.shape[0], down.shape[1]), base, GAMMA)
    normed = lambda merge: lambda base, magnitude, *factors: ops.dora_fwd(merge(base, *factors), magnitude)[0]
    return {
        "locon": low_rank, "loha": hadamard, "lokr full": whole, "lokr": ranked,
        "locon dora-out": normed(low_rank), "loha dora-out": normed(hadamard), "lokr full dora-out": normed(whole),
        "ia3 out": lambda base, vector: ops.ia3_fwd(base, vector, 0, 1.0, GAMMA),
        "ia3 in": lambda base, vector: ops.ia3_fwd(base, vector, 1, 1.0, GAMMA),
        "oft": lambda base, blocks: ops.oft_fwd(blocks, base, shift=False),
        "boft": lambda base, blocks: ops.boft_fwd(blocks, base),
        "glora": lambda base, up, down: low_rank(base, base @ up, down),
    }


def addmm(base, up, down):
    return base.addmm_(up, down, alpha=GAMMA)


FORMULAS = {
    "locon": locon, "loha": loha, "lokr full": lokr, "lokr": lokr_rank, "ia3 out": ia3, "ia3 in": ia3, "glora": glora,
    "locon tucker": locon_tucker, "loha tucker": loha_tucker, "lokr tucker": lokr_tucker,
    "oft": oft, "boft": boft, "locon dora-out": dora(locon, 1), "loha dora-out": dora(loha, 1),
    "lokr full dora-out": dora(lokr, 1), "locon dora-in": dora(locon, 0), "loha dora-in": dora(loha, 0),
    "lokr full dora-in": dora(lokr, 0),
}


def factors_of(method, rows, columns, kernel, rank):
    """`columns` are those of the weight as a matrix, input features times the kernel's elements."""
    pair = lambda: [random(rows, rank), random(rank, columns)]
    tucker = lambda rows, columns: [random(rows, rank), random(rank, rank, kernel), random(rank, columns // kernel)]
    name = method.replace(" dora-out", "").replace(" dora-in", "")
    own = {
        "locon": pair,
        "loha": lambda: pair() + pair(),
        "lokr full": lambda: [random(FACTOR, FACTOR), random(rows // FACTOR, columns // FACTOR)],
        "lokr": lambda: [random(FACTOR, FACTOR), random(rows // FACTOR, rank), random(rank, columns // FACTOR)],
        "locon tucker": lambda: tucker(rows, columns),
        "loha tucker": lambda: tucker(rows, columns) + tucker(rows, columns),
        "lokr tucker": lambda: [random(FACTOR, FACTOR), *tucker(rows // FACTOR, columns // FACTOR)],
        "ia3 out": lambda: [random(rows, 1)],
        "ia3 in": lambda: [random(1, columns)],
        "glora": lambda: [random(columns, rank, scale=0.01), random(rank, columns)],
        "oft": lambda: [random(rows // OFT_BLOCK, OFT_BLOCK, OFT_BLOCK, scale=0.01)],
        "boft": lambda: [random((rows // BOFT_BLOCK).bit_length(), rows // BOFT_BLOCK, BOFT_BLOCK, BOFT_BLOCK,
                                scale=0.01)],
    }[name]()
    if method.endswith("dora-out"):
        return [random(rows, 1, scale=1.0), *own]
    return [random(1, columns, scale=1.0), *own] if method.endswith("dora-in") else own


def device_time(call, sets, calls=CALLS):
    """Microseconds of one call, whatever launches it takes."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for index in range(3):
            call(*sets[index % len(sets)])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    results = collections.deque(maxlen=len(sets))  # a result let go would be the next one's memory, still in the cache
    with torch.cuda.graph(graph, stream=stream):
        for index in range(calls):
            results.append(call(*sets[index % len(sets)]))
    times = []
    for _ in range(REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / calls)
    return sorted(times)[len(times) // 2]


def check(call, method, base, factors, in_place):
    wide = lambda t: None if t is None else t.float()
    want = FORMULAS[method](wide(base), *map(wide, factors))
    got = call(base.clone() if in_place else base, *factors).float()
    error = (got.reshape(want.shape) - want).norm() / want.norm()
    if not error < 0.02:
        raise ValueError(f"wrong by {error:.1%}")


def peers_of(method, op, lycoris):
    if op == "delta" and "dora" in method:
        return {}
    if op == "in-place":
        return {"addmm_": addmm} if method == "locon" else {}
    found = {"compile": torch.compile(FORMULAS[method])} if method not in ("oft", "boft") else {}
    if "tucker" in method:
        found["eager"] = FORMULAS[method]
    if method in lycoris:
        found["lycoris"] = lycoris[method]
    return found


def measure(method, shape, kernel, rank, op, lycoris):
    rows, columns = shape
    count = max(2, min(32, 300_000_000 // (2 * rows * columns)))
    sets = [[None if op == "delta" else random(rows, columns), *factors_of(method, rows, columns, kernel, rank)]
            for _ in range(count)]
    times = {}
    for who, call in peers_of(method, op, lycoris).items():
        try:
            check(call, method, sets[0][0], sets[0][1:], op == "in-place")
            times[who] = device_time(call, sets)
        except Exception as failure:  # a peer's own, or too little memory
            print(f"    {who}: {str(failure).splitlines()[0][:100]}")
            torch.cuda.synchronize()
    return times


def layers_of(method, shapes, rank):
    """A base and its factors for each layer. A Kronecker product's left half divides both sides."""
    layers = []
    for rows, columns, kernel in shapes:
        sides = [rows, columns * kernel]
        layers.append([random(*sides), *factors_of(method, *sides, kernel, rank)])
    return layers


def measure_network(method, shapes, rank, lycoris):
    """All layers' merges captured in one graph: in place by addmm_, into new weights by LyCORIS' ops."""
    layers = layers_of(method, shapes, rank)
    peers = {"addmm_": addmm} if method == "locon" else {}
    if method in lycoris:
        peers["lycoris, new"] = lycoris[method]
    times = {}
    for who, call in peers.items():
        times[who] = device_time(lambda *_: [call(*layer) for layer in layers], [[]], calls=1)
        torch.cuda.empty_cache()
    return times


def matrix_of(shape):
    rows, columns, *kernel = map(int, shape.split("x"))
    size = kernel[0] * kernel[1] if kernel else 1
    return (rows, columns * size), size


def times_beside(match, program, lycoris):
    method, rank = match["method"], int(match["rank"])
    if "," not in match["shape"]:
        return measure(method, *matrix_of(match["shape"]), rank, match["op"], lycoris)
    output = subprocess.run([program, "--shapes", match["shape"].split(",")[0]], check=True, capture_output=True, text=True)
    return measure_network(method, [tuple(map(int, line.split())) for line in output.stdout.splitlines()], rank, lycoris)


@torch.no_grad()
def main(program, *words):
    output = subprocess.run([program, *words], check=True, capture_output=True, text=True).stdout
    print(output.splitlines()[0])
    lycoris = lycoris_ops()
    print(f"{'weight':18} {'method':24} {'op':9} {'ours us':>8} {'x floor':>8}  peers: us (peer / ours)")
    for line in output.splitlines()[2:]:
        match = LINE.match(line)
        if not match or match["method"] not in FORMULAS:
            print(line)
            continue
        ours = float(match["us"])
        times = times_beside(match, program, lycoris)
        peers = "  ".join(f"{who} {us:.1f} ({us / ours:.2f})" for who, us in sorted(times.items(), key=lambda t: t[1]))
        name = f"{match['method']} r{match['rank']}"
        print(f"{match['shape']:18} {name:24} {match['op']:9} {ours:8.1f} {ours / float(match['floor']):8.2f}  {peers}",
              flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Add an adapter to weights in memory, in place, and look at what it adds: apply.py MODEL ADAPTER

The weights here are read from a file; a PyTorch model's state_dict() goes in the same way, with nothing copied.
"""
import sys

import liblycoris

weights = dict(liblycoris.File(sys.argv[1]))
network = liblycoris.load_network(sys.argv[2])

report = network.merge_into(weights, multiplier=0.8)
print(f"{report.matched} of {report.layers} layers merged")

for name, module in network.items():
    if not module.needs_base:
        delta = module.diff_weight()  # torch.from_dlpack(delta), numpy.asarray(delta)
        print(f"{name}: {module.algo} of rank {module.rank}, delta {delta.shape} {delta.dtype}")

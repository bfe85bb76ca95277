"""The peer's modules for the methods of the benchmarks."""

import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.tlora import TLoraModule

WHOLE = 100000  # a rank that no half reaches: both stay whole
DORA_OUT, DORA_IN = ((LoConModule, dict(lora_dim=16, alpha=8, weight_decompose=True, wd_on_out=on_out))
                     for on_out in (True, False))
METHODS = {  # as benchmarks/methods.cpp calls them
    "locon r16": (LoConModule, dict(lora_dim=16, alpha=8)),
    "loha r16": (LohaModule, dict(lora_dim=16, alpha=8)),
    "lokr f16": (LokrModule, dict(lora_dim=WHOLE, alpha=8, factor=16, full_matrix=True)),
    "lokr f16 r16": (LokrModule, dict(lora_dim=16, alpha=8, factor=16)),
    "dora out locon r16": DORA_OUT,
    "dora out prepared": DORA_OUT,
    "dora in locon r16": DORA_IN,
    "dora in prepared": DORA_IN,
    "ia3 out": (IA3Module, dict()),
    "ia3 in": (IA3Module, dict(train_on_input=True)),
    "glora r16": (GLoRAModule, dict(lora_dim=16, alpha=8)),
    "tlora r16": (TLoraModule, dict(lora_dim=16, alpha=8, use_data_init=False)),
    "oft b32": (DiagOFTModule, dict(lora_dim=32)),
    "boft b24": (ButterflyOFTModule, dict(lora_dim=24)),
    "boft b20": (ButterflyOFTModule, dict(lora_dim=20)),
    "locon tucker r16": (LoConModule, dict(lora_dim=16, alpha=8, use_tucker=True)),
    "loha tucker r16": (LohaModule, dict(lora_dim=16, alpha=8, use_tucker=True)),
    "lokr f16 tucker r16": (LokrModule, dict(lora_dim=16, alpha=8, factor=16, use_tucker=True)),
}
NARROW = {"tlora r16"}  # for linear layers in float32 only


def computes(method, kernel, dtype):
    """Whether the peer has a method for a layer, with a kernel or without, of a type ("f32", "bf16")."""
    return method in METHODS and (method not in NARROW or (not kernel and dtype == "f32"))


def module_of(method, layer, dtype):
    """A module of `method` with arbitrary parameters on a layer."""
    kind, options = METHODS[method]
    module = kind("peer", layer, 1.0, **options).to(dtype)
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, 0.01, 0.02)
    return module

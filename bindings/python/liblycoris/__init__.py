"""lycoris: merge, inspect and apply LyCORIS adapters (LoRA, LoHa, LoKr, DoRA, full and norm differences).

    import liblycoris

    liblycoris.merge_files("model.safetensors", ["style.safetensors"], "out.safetensors", multiplier=0.8, progress=True)

    net = liblycoris.load_network("style.safetensors")
    net.merge_into(model.state_dict(), multiplier=0.8)            # in place, nothing copied
    delta = net["transformer.blocks.0.attn.to_q"].diff_weight()   # any DLPack consumer
"""
from __future__ import annotations

import functools
import os
import sys
from typing import Any, Callable, Dict, Optional, Sequence, Tuple, Union

from . import native
from .errors import (ArgumentError, CancelledError, DeviceError, Error, FormatError, InternalError, IoError,
                     MismatchError, MissingFileError, NotFoundError, OutOfMemoryError, UnsupportedError)
from .objects import Batch, Context, File, Module, Network, Path, Report, match, save_file
from .tensors import DORA_RULES, DTYPES, Tensor

__all__ = [
    "ArgumentError", "Batch", "CancelledError", "Context", "DeviceError", "Error", "File", "FormatError",
    "InternalError", "IoError", "MismatchError", "MissingFileError", "Module", "Network", "NotFoundError", "OutOfMemoryError", "Report",
    "Tensor", "UnsupportedError", "backend_explain", "build_info", "device_count", "has_feature", "inspect_file",
    "load_backend", "load_network", "match", "merge_files", "save_file",
]

__version__: str = native.version_string()

if native.abi_version() >> 16 != native.ABI_MAJOR:
    raise ImportError(f"liblycoris was built for ABI {native.ABI_MAJOR}, the library found has "
                      f"{native.abi_version() >> 16}")

Progress = Union[bool, Callable[[int, int], Optional[bool]], None]
Multipliers = Union[float, Sequence[float], Sequence[Tuple[Optional[str], int, float]]]


@functools.lru_cache(maxsize=None)
def _context(device: str) -> Context:
    """The one that functions without a context use, made when first needed."""
    return Context(device)


def merge_files(base: Path, adapters: Union[Path, Sequence[Path]], out: Path, *, multiplier: Multipliers = 1.0,
                includes: Sequence[str] = (), excludes: Sequence[str] = (), dtype: str = "none",
                dora_rule: str = "default", allow_unmatched: bool = False, overwrite: bool = False,
                progress: Progress = None, context: Optional[Context] = None) -> Report:
    """Merge adapters into a base model, file to file.

    multiplier: one for all, one an adapter, or rules (pattern or None, adapter index or -1, multiplier); later ones win.
    progress: True draws a bar; a function is called with (done, total) in bytes, and cancels by returning True.
    """
    if isinstance(adapters, (str, os.PathLike)):
        adapters = [adapters]
    options = native.MergeOptions()
    options.flags = allow_unmatched * native.ALLOW_UNMATCHED | overwrite * native.OVERWRITE
    options.dtype, options.dora_rule = DTYPES.value(dtype), DORA_RULES.value(dora_rule)
    options.set_includes(list(includes))
    options.set_excludes(list(excludes))
    options.set_multipliers(_rules(multiplier, len(adapters)))
    function = _draw_progress if progress is True else progress or None
    options.set_progress(function)
    report = native.merge_files((context or _context("cpu"))._native, os.fspath(base),
                                [os.fspath(adapter) for adapter in adapters], os.fspath(out), options)
    return Report(report)


def _rules(multiplier: Multipliers, adapter_count: int) -> Sequence[Tuple[Optional[str], int, float]]:
    if isinstance(multiplier, (int, float)):
        return [(None, -1, float(multiplier))]
    if all(isinstance(m, (int, float)) for m in multiplier):
        if len(multiplier) != adapter_count:
            raise ArgumentError(f"{len(multiplier)} multipliers for {adapter_count} adapters")
        return [(None, index, float(m)) for index, m in enumerate(multiplier)]
    return [tuple(rule) for rule in multiplier]


def _draw_progress(done: int, total: int) -> None:
    share = done / total if total else 1.0
    print(f"\r{'#' * int(40 * share):<40} {share:4.0%}", end="\n" if done >= total else "", file=sys.stderr, flush=True)


def load_network(path: Path, *, device: str = "cpu", context: Optional[Context] = None,
                 dora_rule: str = "default") -> Network:
    """Load an adapter file; its dialect is found by itself."""
    return Network(context or _context(device), path, dora_rule=dora_rule)


def inspect_file(path: Path, *, context: Optional[Context] = None) -> Dict[str, Any]:
    """Look into a base or adapter file: dialect, algorithms, ranks, layers, dtypes, anomalies."""
    return Report(native.inspect_file((context or _context("cpu"))._native, os.fspath(path))).to_dict()


def build_info() -> str:
    """One line of JSON about the library's build."""
    return native.build_info()


def has_feature(name: str) -> bool:
    return bool(native.has_feature(name))


def device_count(kind: str = "cuda") -> int:
    return native.device_count(_device_type(kind))


def load_backend(path: Path) -> None:
    """Load a back end from this file instead of the default places."""
    native.backend_load(os.fspath(path))


def backend_explain(kind: str = "cuda") -> str:
    """Which file a back end came from, or every place tried and why it failed."""
    return native.backend_explain(_device_type(kind))


def _device_type(kind: str) -> int:
    return {"cpu": native.DEVICE_CPU, "cuda": native.DEVICE_CUDA}[kind]

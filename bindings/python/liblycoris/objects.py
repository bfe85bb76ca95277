"""The library's objects. Each owns one reference to its native object, and what that object borrows from Python."""
from __future__ import annotations

import array
import json
import os
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from . import native
from .errors import NotFoundError
from .tensors import (ALGOS, DORA_AXES, DORA_RULES, DTYPES, PARTS, Tensor, TensorLike, stream_address, view_of)

Path = Union[str, "os.PathLike[str]"]


class Context:
    """A device with its threads and its memory allocator.

    ``device`` is "cpu", "cuda" or "cuda:1". Threads start with the context and end with it; 0 = as many as the process
    may use.
    """

    def __init__(self, device: str = "cpu", *, threads: int = 0) -> None:
        kind, _, index = device.partition(":")
        types = {"cpu": native.DEVICE_CPU, "cuda": native.DEVICE_CUDA}
        if kind not in types or not (index or "0").isdigit():
            raise ValueError(f'device is {device!r}, must be "cpu", "cuda" or "cuda:<number>"')
        options = native.ContextOptions()
        options.device_type = types[kind]
        options.device_index = int(index or 0)
        options.threads = threads
        self._native = native.context_create(options)

    @property
    def device(self) -> str:
        info = native.context_get_info(self._native)
        return "cpu" if info.device_type == native.DEVICE_CPU else f"cuda:{info.device_index}"

    @property
    def threads(self) -> int:
        return native.context_get_info(self._native).threads

    def __repr__(self) -> str:
        return f"Context(device={self.device!r}, threads={self.threads})"


class Report:
    """What an operation did: figures, and everything else as a dict."""

    def __init__(self, handle: native.Report) -> None:
        info = native.report_get_info(handle)
        self.layers: int = info.layer_count  #: adapted layers in the adapters
        self.matched: int = info.matched_count  #: of these, the ones that found their weight
        self.excluded: int = info.excluded_count
        self.unmatched: int = info.unmatched_count
        self.tensors: int = info.tensor_count  #: tensors in the base
        self.changed: int = info.changed_count
        self.bytes_read: int = info.bytes_read
        self.bytes_written: int = info.bytes_written
        self.seconds: float = info.seconds
        self.json: str = native.report_json(handle)

    def to_dict(self) -> Dict[str, Any]:
        return json.loads(self.json)

    def __repr__(self) -> str:
        return f"Report({self.matched} of {self.layers} layers, {self.changed} of {self.tensors} tensors changed)"


class File(Mapping[str, Tensor]):
    """A safetensors file or folder: name -> tensor, read when asked for. ``source`` is a path, or the bytes of a file."""

    def __init__(self, source: Union[Path, bytes, bytearray, memoryview]) -> None:
        if isinstance(source, (bytes, bytearray, memoryview)):
            self._memory = memoryview(source)
            self._native = native.file_open_memory(self._memory)
        else:
            self._native = native.file_open(os.fspath(source))

    def describe(self, name: str) -> Tuple[str, Tuple[int, ...]]:
        """(dtype, shape) of a tensor, without reading it."""
        return self._describe(native.file_find_tensor(self._native, name))

    def _describe(self, index: int) -> Tuple[str, Tuple[int, ...]]:
        _, view = native.file_get_tensor(self._native, index)
        return DTYPES.name(view.dtype()), view.shape()

    def __getitem__(self, name: str) -> Tensor:
        index = native.file_find_tensor(self._native, name)
        dtype, shape = self._describe(index)
        tensor = Tensor.zeros(shape, dtype)
        native.file_read_tensor(self._native, index, tensor._view.memory())
        return tensor

    def __contains__(self, name: object) -> bool:
        try:
            native.file_find_tensor(self._native, name)
        except (KeyError, TypeError):
            return False
        return True

    def __len__(self) -> int:
        return native.file_tensor_count(self._native)

    def __iter__(self) -> Iterator[str]:
        for index in range(len(self)):
            yield native.file_get_tensor(self._native, index)[0]

    @property
    def metadata(self) -> Dict[str, str]:
        return dict(native.file_get_metadata(self._native, i) for i in range(native.file_metadata_count(self._native)))


def save_file(path: Path, tensors: Mapping[str, TensorLike], metadata: Optional[Mapping[str, str]] = None) -> None:
    """Write a safetensors file. It appears at ``path`` in one step, when all is written."""
    writer = native.writer_create(os.fspath(path))
    for key, value in (metadata or {}).items():
        native.writer_set_metadata(writer, key, value)
    views = {name: view_of(tensor) for name, tensor in tensors.items()}  # borrowed until finish
    for name, view in views.items():
        native.writer_add(writer, name, view)
    native.writer_finish(writer)


class Module:
    """The delta of one layer: its factors, and how they make a delta. It does not hold the layer's weight."""

    def __init__(self, handle: native.Module) -> None:
        self._native = handle
        self._bound: Dict[str, native.View] = {}  # memory that the module uses

    @classmethod
    def create(cls, context: Context, algo: str, shape: Sequence[int], *, rank: int = 0, alpha: float = 0.0,
               factor: int = 0, dtype: str = "f32", dora_axis: str = "none", dora_rule: str = "default",
               tucker: bool = False, rank_stabilised: bool = False, scalar: bool = False, decompose_both: bool = False,
               whole: bool = False, unbalanced: bool = False, bias: bool = False) -> Module:
        """A module for one layer, all parameters zero. ``shape`` is the weight's, as [O, I, K...]."""
        options = native.ModuleOptions()
        options.algo = ALGOS.value(algo)
        options.set_shape(tuple(shape))
        options.rank, options.alpha, options.factor = rank, alpha, factor
        options.dtype = DTYPES.value(dtype)
        options.dora_axis, options.dora_rule = DORA_AXES.value(dora_axis), DORA_RULES.value(dora_rule)
        options.flags = (tucker * native.MODULE_TUCKER | rank_stabilised * native.MODULE_RANK_STABILISED |
                         scalar * native.MODULE_SCALAR | decompose_both * native.MODULE_DECOMPOSE_BOTH |
                         whole * native.MODULE_WHOLE | unbalanced * native.MODULE_UNBALANCED |
                         bias * native.MODULE_BIAS)
        return cls(native.module_create(context._native, options))

    @classmethod
    def from_tensors(cls, context: Context, tensors: Mapping[str, TensorLike], *, alpha: float = 0.0,
                     rank_stabilised: bool = False, dora_rule: str = "default") -> Module:
        """A module from tensors named as in a file: "lora_up.weight", "hada_w1_a", "alpha", ..."""
        options = native.ModuleOptions()
        options.alpha, options.dora_rule = alpha, DORA_RULES.value(dora_rule)
        options.flags = rank_stabilised * native.MODULE_RANK_STABILISED
        views = {name: view_of(tensor) for name, tensor in tensors.items()}
        module = cls(native.module_create_from_tensors(context._native, options, views))
        # CUDA tensors are bound, CPU tensors are copied.
        module._bound = {name: view for name, view in views.items() if view.device_type() == native.DEVICE_CUDA}
        return module

    @property
    def algo(self) -> str:
        return ALGOS.name(self._info.algo)

    @property
    def rank(self) -> int:
        return self._info.rank

    @property
    def alpha(self) -> float:
        return self._info.alpha

    @property
    def scale(self) -> float:
        """What alpha and the rules come to; what the delta is multiplied by."""
        return self._info.scale

    @property
    def dora_axis(self) -> str:
        return DORA_AXES.name(self._info.dora_axis)

    @property
    def dora_rule(self) -> str:
        return DORA_RULES.name(self._info.dora_rule)

    @property
    def needs_base(self) -> bool:
        """The delta depends on the weight (DoRA)."""
        return bool(self._info.needs_base)

    @property
    def shape(self) -> Tuple[int, int]:
        """Of the delta as a matrix: out features, in features times kernel size."""
        return self._info.out_features, self._info.in_elements

    @property
    def _info(self) -> native.ModuleInfo:
        return native.module_get_info(self._native)

    def parameters(self) -> Dict[str, Tensor]:
        """Copies of the parameters, in the order in which files list them."""
        return {name: self.read(name) for name in self._parameters()}

    def _parameters(self) -> Dict[str, native.View]:
        count = native.module_param_count(self._native)
        return dict(native.module_get_param(self._native, i) for i in range(count))

    def read(self, name: str) -> Tensor:
        """A copy of one parameter."""
        views = self._parameters()
        if name not in views:
            raise NotFoundError(f"module has no parameter {name!r}, it has {', '.join(views)}")
        tensor = Tensor.zeros(views[name].shape(), DTYPES.name(views[name].dtype()))
        native.module_read_param(self._native, name, tensor._view)
        return tensor

    def write(self, name: str, values: TensorLike) -> None:
        """Copy values into a parameter; dtypes are converted."""
        native.module_write_param(self._native, name, view_of(values))

    def bind(self, name: str, memory: TensorLike) -> None:
        """Use this memory for a parameter; its values may change between calls."""
        view = view_of(memory)
        native.module_bind_param(self._native, name, view)
        self._bound[name] = view

    def diff_weight(self, base: Optional[TensorLike] = None, multiplier: float = 1.0, *,
                    out: Optional[TensorLike] = None, layout: str = "oihw", stream: Any = None) -> Tensor:
        """dW(multiplier), into ``out`` or a new f32 tensor on the CPU: of the base's shape, or else a matrix."""
        base_view = view_of(base, layout, stream)
        if out is None:
            out = Tensor.zeros(base_view.shape() if base_view else self.shape, layout=layout)
        elif not isinstance(out, Tensor):
            out = Tensor(out, layout=layout, stream=stream)
        native.get_diff_weight(self._native, base_view, multiplier, out._view, stream_address(stream))
        return out

    def merge(self, weight: TensorLike, multiplier: float = 1.0, *, out: Optional[TensorLike] = None,
              layout: str = "oihw", stream: Any = None) -> None:
        """weight += dW(multiplier), or out = weight + dW(multiplier)."""
        native.merge(self._native, view_of(weight, layout, stream), multiplier, view_of(out, layout, stream),
                     stream_address(stream))

    def unmerge(self, weight: TensorLike, multiplier: float = 1.0, *, layout: str = "oihw", stream: Any = None) -> None:
        """weight -= dW(multiplier), exact up to rounding."""
        native.unmerge(self._native, view_of(weight, layout, stream), multiplier, stream_address(stream))

    def forward(self, x: TensorLike, y: TensorLike, multiplier: float = 1.0, *, weight: Optional[TensorLike] = None,
                layer: Optional[native.Layer] = None, layout: str = "oihw", stream: Any = None) -> None:
        """y += op(x, dW(multiplier)); ``layer`` is the operator, None a linear one. ``weight`` where dW depends on it."""
        native.forward(self._native, layer, view_of(x, stream=stream), view_of(weight, layout, stream), multiplier,
                       view_of(y, stream=stream), stream_address(stream))

    def forward_fused(self, x: TensorLike, weight: TensorLike, y: TensorLike, multiplier: float = 1.0, *,
                      bias: Optional[TensorLike] = None, layer: Optional[native.Layer] = None, layout: str = "oihw",
                      stream: Any = None) -> None:
        """y = op(x, weight + dW(multiplier)) + bias."""
        native.forward_fused(self._native, layer, view_of(x, stream=stream), view_of(weight, layout, stream),
                             view_of(bias, stream=stream), multiplier, view_of(y, stream=stream),
                             stream_address(stream))

    def __repr__(self) -> str:
        return f"Module(algo={self.algo!r}, shape={self.shape}, rank={self.rank}, scale={self.scale:g})"


class Batch:
    """Many weights in one submission, prepared once and run often."""

    def __init__(self, handle: native.Batch, borrowed: Iterable[Any]) -> None:
        self._native = handle
        self._borrowed = list(borrowed)  # weights, and modules with the memory that they are bound to

    @classmethod
    def create(cls, context: Context, items: Iterable[Mapping[str, Any]]) -> Batch:
        """Each item: module, base, and as needed out, row_begin, row_count, multiplier_index, part ("weight", "bias")."""
        rows: List[Tuple[Any, ...]] = []
        borrowed: List[Any] = []
        for item in items:
            item = dict(item)
            module, base, out = item.pop("module"), view_of(item.pop("base", None)), view_of(item.pop("out", None))
            part = PARTS.value(item.pop("part", "weight"))
            rows.append((module._native, base, out, item.pop("row_begin", 0), item.pop("row_count", 0),
                         item.pop("multiplier_index", 0), part))
            borrowed += [module, base, out]
            if item:
                raise TypeError(f"an item has no {', '.join(map(repr, item))}")
        return cls(native.batch_create(context._native, rows), borrowed)

    def merge(self, multipliers: Optional[Union[Sequence[float], TensorLike]] = None, *, stream: Any = None) -> None:
        """out = base + sum of deltas. Multipliers: numbers, or a tensor that a CUDA graph reads when it runs."""
        self._run(native.BATCH_MERGE, multipliers, stream)

    def unmerge(self, multipliers: Optional[Union[Sequence[float], TensorLike]] = None, *, stream: Any = None) -> None:
        """out = base - sum of deltas."""
        self._run(native.BATCH_UNMERGE, multipliers, stream)

    def diff(self, multipliers: Optional[Union[Sequence[float], TensorLike]] = None, *, stream: Any = None) -> None:
        """out = sum of deltas."""
        self._run(native.BATCH_DIFF, multipliers, stream)

    def _run(self, operation: int, multipliers: Any, stream: Any) -> None:
        if isinstance(multipliers, (list, tuple)):
            multipliers = array.array("f", multipliers)
        view = view_of(multipliers, stream=stream)
        native.batch_run(self._native, operation, view, stream_address(stream))
        if view is not None and view.device_type() == native.DEVICE_CUDA:
            self._multipliers = view  # read when the stream gets there

    @property
    def workspace_size(self) -> int:
        return native.batch_workspace_size(self._native)

    def explain(self) -> str:
        """What a run does, as text."""
        return native.batch_explain(self._native)


class Network(Mapping[str, Module]):
    """An adapter file in memory: layer name -> module."""

    def __init__(self, context: Context, path: Path, *, dora_rule: str = "default") -> None:
        options = native.NetworkOptions()
        options.dora_rule = DORA_RULES.value(dora_rule)
        self._context = context
        self._native = native.network_load(context._native, os.fspath(path), options)
        count = native.network_count(self._native)
        # Kept for good: a module's Python half holds the memory that its native half is bound to.
        self._modules = {name: Module(handle) for name, handle in
                         (native.network_get_module(self._native, i) for i in range(count))}

    def __getitem__(self, name: str) -> Module:
        return self._modules[name]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def merge_into(self, tensors: Mapping[str, TensorLike], multiplier: float = 1.0, *,
                   includes: Sequence[str] = (), excludes: Sequence[str] = (), allow_unmatched: bool = False,
                   layout: str = "oihw", stream: Any = None) -> Report:
        """Add this adapter to a model's weights, in place: a state_dict(), or name -> array."""
        batch, report = match([self], tensors, includes=includes, excludes=excludes, allow_unmatched=allow_unmatched,
                              layout=layout, stream=stream)
        batch.merge([multiplier], stream=stream)
        return report

    def __repr__(self) -> str:
        return f"Network({len(self)} modules)"


def match(networks: Sequence[Network], tensors: Mapping[str, TensorLike], *, includes: Sequence[str] = (),
          excludes: Sequence[str] = (), allow_unmatched: bool = False, layout: str = "oihw",
          stream: Any = None) -> Tuple[Batch, Report]:
    """Find the weights that networks adapt, and prepare the batch that changes them in place.

    Multiplier i of a run belongs to networks[i].
    """
    options = native.MatchOptions()
    options.flags = allow_unmatched * native.ALLOW_UNMATCHED
    options.set_includes(list(includes))
    options.set_excludes(list(excludes))
    views = {name: view_of(tensor, layout, stream) for name, tensor in tensors.items()}
    # Tensors of a type that no adapter can touch, as complex tables, are no business of the library's.
    views = {name: view for name, view in views.items() if view.dtype() != native.DTYPE_NONE}
    context = networks[0]._context if networks else Context()
    handle, report = native.batch_create_from_networks(context._native, [n._native for n in networks], views, options)
    return Batch(handle, [networks, views]), Report(report)

"""Tensors in and out: anything with DLPack or a buffer, and memory of our own for others to take."""
from __future__ import annotations

from typing import Any, Dict, Iterable, Optional, Tuple, Union

from . import native


class _Names:
    """The enumerators of one C enum, by their names in lower case."""

    def __init__(self, prefix: str) -> None:
        self._values: Dict[str, int] = {
            name[len(prefix):].lower(): getattr(native, name) for name in dir(native) if name.startswith(prefix)
        }
        self._names = {value: name for name, value in self._values.items()}

    def value(self, name: str) -> int:
        try:
            return self._values[name.lower()]
        except KeyError:
            raise ValueError(f"{name!r} is none of {', '.join(self._values)}") from None

    def name(self, value: int) -> str:
        return self._names.get(value, "unknown")


DTYPES = _Names("DTYPE_")
LAYOUTS = _Names("LAYOUT_")
ALGOS = _Names("ALGO_")
DORA_RULES = _Names("DORA_RULE_")
DORA_AXES = _Names("DORA_AXIS_")
PARTS = _Names("PART_")

_DL_CPU, _DL_CUDA = 1, 2
_NUMPY_LETTERS = {"f32": "f4", "f16": "f2", "f64": "f8", "i64": "i8", "i32": "i4", "i16": "i2", "i8": "i1",
                  "u64": "u8", "u32": "u4", "u16": "u2", "u8": "u1", "bool": "b1"}


class Tensor:
    """A view of an array's memory, and of what its axes mean.

    Made from any object with ``__dlpack__`` (PyTorch, NumPy, JAX, CuPy) or the buffer protocol; nothing is copied, and
    the array lives as long as the view. Functions take arrays directly; make a Tensor where the axes are in another
    order than PyTorch's: ``Tensor(kernel, layout="hwio")``.

    Results are Tensors too: ``torch.from_dlpack(t)``, ``numpy.asarray(t)``.
    """

    __slots__ = ("_view",)
    _view: native.View

    def __init__(self, array: Any, *, layout: str = "oihw", stream: Any = None) -> None:
        on_cuda = hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] not in (_DL_CPU, 3)
        # A producer must make this stream wait for its own; 1 is what DLPack calls CUDA's legacy stream, our 0.
        self._view = native.View(array, LAYOUTS.value(layout), (stream_address(stream) or 1) if on_cuda else None)

    @classmethod
    def zeros(cls, shape: Iterable[int], dtype: str = "f32", *, layout: str = "oihw") -> Tensor:
        """New memory on the CPU."""
        return cls._of(native.View.zeros(tuple(shape), DTYPES.value(dtype), LAYOUTS.value(layout)))

    @classmethod
    def _of(cls, view: native.View) -> Tensor:
        tensor = cls.__new__(cls)
        tensor._view = view
        return tensor

    @property
    def shape(self) -> Tuple[int, ...]:
        return self._view.shape()

    @property
    def strides(self) -> Tuple[int, ...]:
        """In elements."""
        return self._view.strides()

    @property
    def dtype(self) -> str:
        """"f32", "bf16", ...; "none" for a type that the library does not know."""
        return DTYPES.name(self._view.dtype())

    @property
    def layout(self) -> str:
        return LAYOUTS.name(self._view.layout())

    @property
    def device(self) -> str:
        """"cpu" or "cuda:0"."""
        return f"cuda:{self._view.device_index()}" if self._view.device_type() == native.DEVICE_CUDA else "cpu"

    @property
    def read_only(self) -> bool:
        return bool(self._view.read_only())

    @property
    def address(self) -> int:
        return self._view.address()

    def slice(self, axis: int, begin: int, length: int) -> Tensor:
        """Part of the same memory, for example one projection of a fused qkv."""
        return Tensor._of(self._view.section(axis, begin, length))

    def __dlpack__(self, *, stream: Any = None, max_version: Optional[Tuple[int, int]] = None,
                   dl_device: Optional[Tuple[int, int]] = None, copy: Optional[bool] = None) -> Any:
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("a Tensor can only share its memory, not copy it")
        return self._view.dlpack(max_version is not None and max_version[0] >= 1)

    def __dlpack_device__(self) -> Tuple[int, int]:
        on_cuda = self._view.device_type() == native.DEVICE_CUDA
        return (_DL_CUDA, self._view.device_index()) if on_cuda else (_DL_CPU, 0)

    @property
    def __array_interface__(self) -> Dict[str, Any]:
        letters = _NUMPY_LETTERS.get(self.dtype)
        if letters is None or self.device != "cpu":
            raise AttributeError(f"NumPy has no {self.dtype} on {self.device}")
        size = int(letters[1])
        return {"version": 3, "typestr": ("|" if size == 1 else "<") + letters, "shape": self.shape,
                "strides": tuple(s * size for s in self.strides), "data": (self.address, self.read_only)}

    def __repr__(self) -> str:
        return f"Tensor(shape={self.shape}, dtype={self.dtype!r}, device={self.device!r}, layout={self.layout!r})"


TensorLike = Union[Tensor, Any]


def view_of(array: Optional[TensorLike], layout: str = "oihw", stream: Any = None) -> Optional[native.View]:
    if array is None:
        return None
    return (array if isinstance(array, Tensor) else Tensor(array, layout=layout, stream=stream))._view


def stream_address(stream: Any) -> Optional[int]:
    """None, a number, or a stream of PyTorch, CuPy or cuda.core."""
    if stream is None or isinstance(stream, int):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        return int((protocol() if callable(protocol) else protocol)[1])
    for attribute in ("cuda_stream", "ptr"):
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute))
    raise TypeError(f"{type(stream).__name__} is not a CUDA stream")

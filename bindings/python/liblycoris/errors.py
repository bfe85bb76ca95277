"""Exceptions. Each is an Error and the built-in exception that comes nearest."""
from __future__ import annotations

from typing import Dict, Type


class Error(Exception):
    """A call of the library failed; the text says what was wrong and why."""

    status: int = 0  #: lyc_status
    native_code: int = 0  #: errno or the CUDA error number; 0 if none


class ArgumentError(Error, ValueError):
    """A value, shape, dtype or object that the call cannot accept."""


class OutOfMemoryError(Error, MemoryError):
    pass


class UnsupportedError(Error, NotImplementedError):
    """Meaningful, but this build, device or algorithm cannot do it."""


class NotFoundError(Error, KeyError):
    """No tensor, module, file or device of that name or number."""

    __str__ = Exception.__str__  # KeyError's shows the text in quotes


class MissingFileError(NotFoundError, FileNotFoundError):
    """No file of that name."""


class IoError(Error, OSError):
    """The operating system refused; `errno` holds its reason."""


class FormatError(Error, ValueError):
    """A file is damaged or not of the expected format."""


class MismatchError(Error, ValueError):
    """Adapter and base do not fit: unmatched keys, wrong shapes."""


class CancelledError(Error):
    """A progress function asked to stop."""


class DeviceError(Error, RuntimeError):
    """A device call failed."""


class InternalError(Error, RuntimeError):
    """A fault of the library; please report it."""


_CLASSES: Dict[int, Type[Error]] = {
    1: ArgumentError,
    2: OutOfMemoryError,
    3: UnsupportedError,
    4: NotFoundError,
    5: IoError,
    6: FormatError,
    7: MismatchError,
    8: CancelledError,
    9: DeviceError,
    10: InternalError,
}


def from_status(status: int, message: str, native_code: int) -> Error:
    """Called by the native module."""
    kind = _CLASSES.get(status, Error)
    error = (MissingFileError if kind is NotFoundError and native_code else kind)(message)
    error.status = status
    error.native_code = native_code
    if isinstance(error, OSError) and native_code:
        error.errno = native_code
    return error

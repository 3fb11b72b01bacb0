"""Reading a pickle from somebody else without running what it says.

A pickle is a program: it names functions and calls them. Here only a few names are known, and none of them is the real
thing: small stand-ins rebuild plain containers and numpy arrays of numbers and strings. Not even numpy's own functions
are reached, since a forged dtype can make them read arbitrary memory.
"""

import math
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray

from merc.errors import MercError

HEADROOM = 2**31
GROWTH = 24
"""Bytes that reading may take: so many, and so many per byte of the file (a short float becomes an object)."""

_SIMPLE_DTYPE = re.compile(r"[<>|=]?([?biufSU]\d*|O8?)")


class _RefusedError(Exception):
    """The pickle asks for what is not admitted; the argument says what."""


class _Dtype:
    """Stands in for ``numpy.dtype``: a code such as ``f4`` and a byte order, nothing structured."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if not isinstance(code, str) or not _SIMPLE_DTYPE.fullmatch(code):
            raise _RefusedError(f"the array type {code!r}")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subarray, names, fields, *_ = state
        if order not in ("<", ">", "=", "|") or not (subarray is names is fields is None):
            raise _RefusedError("a structured array type")
        self.code = order + self.code.lstrip("<>=|")

    @property
    def is_object(self) -> bool:
        return "O" in self.code


class _Array:
    """Stands in for ``numpy.ndarray``; numpy reads it through ``__array__``."""

    values: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.values = _decode(data, dtype, shape, "F" if fortran else "C")

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return self.values if dtype is None else self.values.astype(dtype)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        return self.values[index]


def _decode(data: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    if dtype.is_object:
        if not isinstance(data, list) or len(data) != math.prod(shape):
            raise _RefusedError("an array of objects that is not a list")
        objects = np.empty(len(data), dtype=object)
        for index, item in enumerate(data):  # item by item: numpy would take equal arrays for a table
            objects[index] = item
        return objects.reshape(shape)  # numpy lists them row by row, whatever the order in memory
    content = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(content, dtype=dtype.code).reshape(shape, order=order)


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    if kind is not _Array:
        raise _RefusedError("an array of another class")
    return _Array()


def _scalar(dtype: Any, data: Any = None) -> Any:
    return data if dtype.is_object else _decode(data, dtype, (), "C")[()]


def _frombuffer(data: Any, dtype: Any, shape: tuple[int, ...], order: str, axes: object = None) -> NDArray[Any]:
    if axes is not None:
        raise _RefusedError("an array with permuted axes")
    return _decode(data, dtype, shape, order)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""  # how protocol 2 writes it; a number would ask for that many bytes


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")  # numpy 1 and 2
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        (builtins, name): stand_in
        for builtins in ("builtins", "__builtin__")  # Python 3 and 2
        for name, stand_in in (
            ("set", set),
            ("frozenset", frozenset),
            ("bytearray", bytearray),
            ("bytes", _empty_bytes),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _RefusedError(f"the global '{module}.{name}'")
        return _ADMITTED[module, name]

    def persistent_load(self, identifier: object) -> NoReturn:
        raise _RefusedError("an object outside the file")


@contextmanager
def bounded_memory(path: Path) -> Iterator[None]:
    """Within, on Linux, this process cannot grow far beyond what the features in the file need.

    Raises:
        MercError: it wants more: the file is damaged, or made to exhaust the memory.
    """
    if sys.platform != "linux" or not path.is_file():
        yield
        return
    import resource  # not on every platform

    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + HEADROOM + GROWTH * path.stat().st_size, before[1]))
    try:
        yield
    except MemoryError as error:
        raise MercError(
            f"The pickle {path} asks for more memory than its size explains. Nothing in it was executed. Do not trust "
            "this file; get the features from their publisher."
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def load(path: Path) -> Any:
    """The content of a pickle: containers, numbers, strings and array-likes that ``numpy.asarray`` reads.

    Byte strings of Python 2 are read as latin1.

    Raises:
        MercError: the file is missing, truncated, not a pickle, or asks for anything but
            containers and arrays of numbers and strings. Nothing that it names has been executed then.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except _RefusedError as refused:
        raise MercError(
            f"The pickle {path} asks for {refused}, which a file of features does not need. It was refused and nothing "
            "in it was executed. Do not trust this file; get the features from their publisher."
        ) from None
    except OSError as error:
        raise MercError(f"Cannot read {path}: {error.strerror}. Give the path of the pickle as path=...") from error
    except MemoryError:
        raise
    # A damaged pickle may raise nearly anything: it calls the stand-ins with whatever it likes.
    except Exception as error:
        raise MercError(
            f"{path} is not a whole pickle ({type(error).__name__}: {error}). It may be truncated: compare its size "
            "with the publisher's and download it again."
        ) from error

"""Arrays on disk as safetensors: written whole or piece by piece, read memory-mapped. No torch is needed to read.

One file holds one array (an 8-byte header length, a JSON header, then the numbers row-major), so that an array larger
than memory can be appended to a file while it is computed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from .errors import BadArguments, CorruptFile
from .result import Frozen

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U8": "u1", "BOOL": "?",
}  # fmt: skip
_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_ITEM = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class StoredArray(Frozen):
    """What is known of an array before it is read."""

    name: str
    file: str = Field(description="File in the run's folder.")
    dtype: str = Field(description="Name of the dtype, as torch and numpy write it.")
    shape: tuple[int, ...]
    axes: tuple[str, ...] = Field(description="What runs along each axis.")
    unit: str

    @property
    def bytes(self) -> int:
        size = _ITEM[_NAMES[self.dtype]]
        for n in self.shape:
            size *= n
        return size


class ArrayWriter:
    """Appends to one array along its first axis; only the piece at hand is in memory."""

    def __init__(self, folder: Path, array: StoredArray) -> None:
        self.array = array
        self._rows = 0
        self._file = (folder / array.file).open("wb")
        header = _header(array)
        self._file.write(struct.pack("<Q", len(header)) + header)

    def append(self, piece: Tensor) -> None:
        """Write the next rows, shape [n, *shape[1:]].

        Raises:
            BadArguments: another shape or dtype than was announced, or more rows.
        """
        rows, *rest = piece.shape
        dtype = str(piece.dtype).removeprefix("torch.")
        if tuple(rest) != self.array.shape[1:] or dtype != self.array.dtype:
            raise BadArguments(
                f"a piece of array {self.array.name!r} has shape {tuple(piece.shape)} {dtype}; it needs "
                f"[n, {', '.join(map(str, self.array.shape[1:]))}] {self.array.dtype}."
            )
        self._rows += rows
        if self._rows > self.array.shape[0]:
            raise BadArguments(f"array {self.array.name!r} was announced with {self.array.shape[0]} rows; more came.")
        self._file.write(_raw(piece))

    def close(self) -> None:
        """Finish the file.

        Raises:
            BadArguments: fewer rows came than were announced.
        """
        self._file.close()
        if self._rows != self.array.shape[0]:
            raise BadArguments(
                f"array {self.array.name!r} was announced with {self.array.shape[0]} rows; {self._rows} came."
            )

    def abandon(self) -> None:
        """Let go of the file as it is; its folder is going to be removed."""
        self._file.close()


def describe(name: str, tensor: Tensor, axes: Sequence[str], unit: str) -> StoredArray:
    """What a tensor will be as a stored array."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return stored(name, tuple(tensor.shape), dtype, axes, unit)


def stored(name: str, shape: Sequence[int], dtype: str, axes: Sequence[str], unit: str) -> StoredArray:
    """An array to be stored under a name.

    Raises:
        BadArguments: a dtype that has no place in safetensors, or axes that do not match the shape.
    """
    if dtype not in _NAMES:
        raise BadArguments(f"array {name!r} has dtype {dtype}; stored arrays are {', '.join(_NAMES)}.")
    if len(axes) != len(shape):
        raise BadArguments(f"array {name!r} has {len(shape)} axes; {len(axes)} were named.")
    file = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return StoredArray(
        name=name, file=f"array-{file}.safetensors", dtype=dtype, shape=tuple(shape), axes=tuple(axes), unit=unit
    )


def create(folder: Path, array: StoredArray) -> None:
    """A file of zeros of the final size, to be written in place: a valid file from the start."""
    header = _header(array)
    with (folder / array.file).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + array.bytes)


def read(folder: Path, array: StoredArray, *, writable: bool = False) -> numpy.ndarray:
    """The array, memory-mapped (bfloat16 as its two bytes, see `as_floats`): index it to read only a part.

    Raises:
        CorruptFile: the file is missing, cut short, or does not hold this array.
    """
    import numpy

    path = folder / array.file
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, size)))
        held = header[array.name]
        start, end = (8 + length + offset for offset in held["data_offsets"])
        if end > size or tuple(held["shape"]) != array.shape or held["dtype"] != _NAMES[array.dtype]:
            raise ValueError(f"{size} bytes, shape {held['shape']} {held['dtype']}")
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise CorruptFile(f"{path} does not hold array {array.name!r} ({error}). Run the technique again.") from error
    if 0 in array.shape:
        return numpy.empty(array.shape, _NUMPY[held["dtype"]])
    return numpy.memmap(path, _NUMPY[held["dtype"]], "r+" if writable else "r", start, array.shape)


def as_floats(array: StoredArray, part: numpy.ndarray) -> numpy.ndarray:
    """Numbers of a part that was read: bfloat16 is the upper half of a float32."""
    import numpy

    if array.dtype != "bfloat16":
        return numpy.asarray(part)
    return (numpy.asarray(part).astype(numpy.uint32) << 16).view(numpy.float32)


def _header(array: StoredArray) -> bytes:
    entry = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [0, array.bytes]}
    meta = {"axes": json.dumps(array.axes), "unit": array.unit}
    text = json.dumps({"__metadata__": meta, array.name: entry}).encode()
    return text + b" " * (-len(text) % 8)  # the numbers start aligned, so that they can be mapped


def _raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor in row-major order."""
    from safetensors.torch import save  # torch is loaded: there is a tensor

    whole = save({"x": tensor.detach().cpu().contiguous()})
    (length,) = struct.unpack("<Q", whole[:8])
    return whole[8 + length :]

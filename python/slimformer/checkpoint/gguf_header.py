"""The header of a GGUF file, read as untrusted input.

A GGUF file is a magic number, a version, counted key-value metadata, counted tensor
descriptions, padding and the tensor data. Every length in it is checked against the bytes
that are left before anything is allocated, so that a hostile file fails at once. (The reader
of the ``gguf`` package trusts its file and builds one array per vocabulary entry; only the
package's type tables and dequantisers are used here.)
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.fields import Fields
from slimformer.config import MAX_DIMENSION
from slimformer.errors import FormatError, StorageError, UnsupportedModelError

if TYPE_CHECKING:
    from gguf.constants import GGMLQuantizationType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

MAX_ENTRIES = 1 << 20
"""Most key-value pairs, and most tensors, that a file may claim."""

MAX_ARRAY = 1 << 24
MAX_NAME_BYTES = 256
MAX_DIMENSIONS = 4

_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "|b1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""GGUF value type to numpy element type."""

_STRING = 8
_ARRAY = 9


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies. ``shape`` is outermost first, as everywhere in Slimformer."""

    name: str
    shape: tuple[int, ...]
    quantisation: GGMLQuantizationType
    offset: int  # bytes from the start of the file
    nbytes: int

    def entry(self, index: int) -> GgufTensor:
        """What is at one place of the outermost axis."""
        nbytes = self.nbytes // self.shape[0]
        return dataclasses.replace(
            self, shape=self.shape[1:], offset=self.offset + index * nbytes, nbytes=nbytes
        )


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """A GGUF file whose header has been checked in full, mapped or in memory."""

    path: Path
    metadata: Fields
    tensors: dict[str, GgufTensor]
    data: mmap.mmap | bytes

    def tensor_bytes(self, tensor: GgufTensor) -> npt.NDArray[np.uint8]:
        """The stored bytes of one tensor, [nbytes], a view of the mapped file."""
        return np.frombuffer(self.data, np.uint8, tensor.nbytes, tensor.offset)


def open_gguf(path: Path) -> GgufFile:
    """Map a GGUF file and check its header.

    Raises ``FormatError`` when the file is truncated or contradicts itself,
    ``UnsupportedModelError`` for a version that is not read here and ``StorageError`` when
    the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < len(MAGIC):
                raise FormatError(f"{path}: not a GGUF file: too short")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StorageError(f"{path}: cannot read: {error}") from error
    cursor = _Cursor(path, data)
    if cursor.take(4, "magic") != MAGIC:
        raise FormatError(f"{path}: not a GGUF file: expected it to start with {MAGIC!r}")
    version = cursor.uint32("version")
    if version and version & 0xFFFF == 0:
        raise UnsupportedModelError(f"{path}: a big-endian GGUF file; convert it to little-endian")
    if version not in VERSIONS:
        raise UnsupportedModelError(
            f"{path}: GGUF version: expected one of {VERSIONS}, found {version}"
        )
    n_tensors = cursor.count("tensor count", MAX_ENTRIES)
    n_values = cursor.count("metadata count", MAX_ENTRIES)
    metadata = Fields(str(path), _read_metadata(cursor, n_values))
    described = [_read_tensor_info(cursor) for _ in range(n_tensors)]
    alignment = metadata.integer("general.alignment", DEFAULT_ALIGNMENT)
    if alignment < 1 or alignment & (alignment - 1) or alignment > len(data) + DEFAULT_ALIGNMENT:
        raise FormatError(f"{path}: general.alignment: expected a power of two, found {alignment}")
    start = -(-cursor.position // alignment) * alignment
    return GgufFile(path, metadata, _place(path, described, start, alignment, len(data)), data)


class _Cursor:
    """Reads values one after the other and never beyond the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.position = 0
        self._data = data

    def take(self, size: int, what: str) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise FormatError(
                f"{self.path}: truncated or corrupt: {what} needs {size} bytes at offset "
                f"{self.position}, the file has {len(self._data)}"
            )
        value = self._data[self.position : end]
        self.position = end
        return value

    def uint32(self, what: str) -> int:
        return int(struct.unpack("<I", self.take(4, what))[0])

    def uint64(self, what: str) -> int:
        return int(struct.unpack("<Q", self.take(8, what))[0])

    def count(self, what: str, limit: int) -> int:
        value = self.uint64(what)
        if value > limit:
            raise FormatError(f"{self.path}: {what}: expected at most {limit}, found {value}")
        return value

    def string(self, what: str) -> str:
        raw = self.take(self.uint64(what), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.path}: {what}: not UTF-8: {raw[:40]!r}") from error

    def name(self, what: str) -> str:
        value = self.string(what)
        if len(value.encode()) > MAX_NAME_BYTES:
            raise FormatError(
                f"{self.path}: {what}: expected at most {MAX_NAME_BYTES} bytes, found "
                f"{value[:40]!r}…"
            )
        return value

    def strings(self, count: int, what: str) -> list[str]:
        """``count`` strings in a tight loop: a vocabulary has hundreds of thousands."""
        data, position, end = self._data, self.position, len(self._data)
        unpack = struct.Struct("<Q").unpack_from
        values = []
        for _ in range(count):
            if position + 8 > end:
                raise FormatError(f"{self.path}: truncated or corrupt: {what}")
            (size,) = unpack(data, position)
            position += 8
            if size > end - position:
                raise FormatError(f"{self.path}: truncated or corrupt: {what}")
            values.append(data[position : position + size])
            position += size
        self.position = position
        try:
            return [value.decode("utf-8") for value in values]
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.path}: {what}: not UTF-8: {error.object[:40]!r}") from error


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for index in range(count):
        key = cursor.name(f"metadata key {index}")
        if key in values:
            raise FormatError(f"{cursor.path}: metadata {key}: found twice")
        values[key] = _read_value(cursor, key, cursor.uint32(f"type of metadata {key}"))
    return values


def _read_value(cursor: _Cursor, key: str, kind: int) -> Any:
    what = f"metadata {key}"
    if kind == _STRING:
        return cursor.string(what)
    if kind == _ARRAY:
        element = cursor.uint32(what)
        count = cursor.count(f"length of metadata {key}", MAX_ARRAY)
        if element == _STRING:
            return cursor.strings(count, what)
        dtype = _element_type(cursor, key, element)
        return np.frombuffer(cursor.take(count * dtype.itemsize, what), dtype)
    dtype = _element_type(cursor, key, kind)
    value = np.frombuffer(cursor.take(dtype.itemsize, what), dtype)[0]
    if dtype == np.float32:
        return float(str(value))  # 1e-05, not 9.999999747378752e-06
    return value.item()


def _element_type(cursor: _Cursor, key: str, kind: int) -> np.dtype[Any]:
    if kind not in _SCALARS:
        raise FormatError(f"{cursor.path}: metadata {key}: unknown value type {kind}")
    return np.dtype(_SCALARS[kind])


def _read_tensor_info(cursor: _Cursor) -> GgufTensor:
    """One tensor description; its offset still counts from the start of the data."""
    name = cursor.name("tensor name")
    where = f"{cursor.path}: tensor {name}"
    n_dimensions = cursor.uint32(f"tensor {name}")
    if not 1 <= n_dimensions <= MAX_DIMENSIONS:
        raise FormatError(f"{where}: expected 1 to {MAX_DIMENSIONS} axes, found {n_dimensions}")
    shape = tuple(reversed([cursor.uint64(f"tensor {name}") for _ in range(n_dimensions)]))
    if not all(1 <= size <= MAX_DIMENSION for size in shape):
        raise FormatError(f"{where}: shape {shape}: expected sizes from 1 to {MAX_DIMENSION}")
    raw_type = cursor.uint32(f"tensor {name}")
    offset = cursor.uint64(f"tensor {name}")
    from gguf import constants  # slow, and models in other formats do without

    try:
        quantisation = constants.GGMLQuantizationType(raw_type)
    except ValueError:
        raise UnsupportedModelError(f"{where}: unknown element type {raw_type}") from None
    block_size, block_bytes = constants.GGML_QUANT_SIZES[quantisation]
    if shape[-1] % block_size:
        raise FormatError(
            f"{where}: rows of {shape[-1]} do not divide into {quantisation.name} blocks of "
            f"{block_size}"
        )
    nbytes = math.prod(shape) // block_size * block_bytes
    return GgufTensor(name, shape, quantisation, offset, nbytes)


def _place(
    path: Path, described: list[GgufTensor], start: int, alignment: int, file_size: int
) -> dict[str, GgufTensor]:
    """Tensors by name with absolute offsets; they must lie in the file and not overlap."""
    tensors: dict[str, GgufTensor] = {}
    for tensor in described:
        where = f"{path}: tensor {tensor.name}"
        if tensor.name in tensors:
            raise FormatError(f"{where}: found twice")
        if tensor.offset % alignment:
            raise FormatError(
                f"{where}: expected an offset aligned to {alignment}, found {tensor.offset}"
            )
        begin = start + tensor.offset
        if begin + tensor.nbytes > file_size:
            raise FormatError(
                f"{where}: truncated or corrupt: needs bytes {begin} to "
                f"{begin + tensor.nbytes}, the file has {file_size}"
            )
        tensors[tensor.name] = dataclasses.replace(tensor, offset=begin)
    end, before = start, "the header"
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise FormatError(f"{path}: tensor {tensor.name}: overlaps {before}")
        end, before = tensor.offset + tensor.nbytes, f"tensor {tensor.name}"
    return tensors

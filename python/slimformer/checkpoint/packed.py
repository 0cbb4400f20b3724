"""Weights as one tier's kernels read them, in a file that is mapped and not read.

A packed model is a folder like any other, with `FILE` in place of safetensors:

    bytes 0 to 8      `MAGIC`
          8 to 12     format version, little-endian
          12 to 16    length of the header
          16 to 48    SHA-256 of the header
          48 on       the header, a JSON object
          then        the tensors, from the next multiple of 4,096 on

The header names the tier and, for every tensor, its shape, type and form, the layout of its panels
and where it lies. A layout is a number that comes with the kernels (tensor/layout.h): a file whose
layouts are not those of the kernels at hand is refused. What is no packed matrix is a "vector" of
float32.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import mmap
import re
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Tensor
from slimformer.checkpoint.fields import Fields, parse_json_object
from slimformer.config import ModelConfig
from slimformer.errors import ConfigError, FormatError, StorageError, UnsupportedModelError

FILE = "weights.packed"
MAGIC = b"SLIMPACK"
VERSION = 1

MAX_HEADER_BYTES = 64 << 20
"""A tensor takes some 200 bytes of it."""

WeightType = Literal["f32", "bf16", "int8", "int4"]

Layouts = Mapping[tuple[str, bool], int]
"""By type and whether it is without zeros, how an engine's kernels keep weights."""

_PREFIX = struct.Struct("<8sII32s")
_PAGE = 4096
_ALIGNMENT = 64
_VECTOR = "vector"


@dataclasses.dataclass(frozen=True)
class PackedTensor:
    """One tensor of a packed file.

    ``weights`` is the type of a matrix, ``None`` for plain float32 values; ``layout`` tells apart
    how panels lie in memory. ``data`` is a view of the mapped file, uint8 [bytes].
    """

    shape: tuple[int, ...]
    weights: WeightType | None
    sparse: bool
    layout: int
    data: npt.NDArray[np.uint8]

    @staticmethod
    def of(
        shape: tuple[int, ...],
        tensor: npt.NDArray[np.float32] | tuple[npt.NDArray[np.uint8], WeightType, bool],
        layouts: Layouts,
    ) -> PackedTensor:
        """A vector, or a matrix with its type and form, as an engine keeps it."""
        if isinstance(tensor, tuple):
            data, weights, sparse = tensor
            return PackedTensor(shape, weights, sparse, layouts[weights, sparse], data)
        return PackedTensor(shape, None, False, 0, tensor.view(np.uint8))

    def values(self) -> npt.NDArray[np.float32]:
        """What is no packed matrix, in its shape."""
        return self.data.view(np.float32).reshape(self.shape)


class PackedTensors(Mapping[str, Tensor]):
    """The tensors of a packed file: what an engine runs, but nothing that can be read back.

    Attributes
    ----------
    packed:
        Every tensor as it lies in the file.
    weights:
        What the matrices were asked to be packed as.
    tier:
        The kernels that they were packed for.
    path:
        The file.
    """

    def __init__(
        self, path: Path, weights: WeightType, tier: str, packed: Mapping[str, PackedTensor]
    ) -> None:
        self.path = path
        self.weights = weights
        self.tier = tier
        self.packed = packed

    def check_weights(self, wanted: str | None) -> None:
        """Refuse to be another type than the file holds; ``None`` takes whatever it is.

        Raises
        ------
        ConfigError
            Another type is wanted.
        """
        if wanted not in (None, self.weights):
            raise ConfigError(
                f"weights: expected {self.weights}, which {self.path} holds, found {wanted}; leave "
                "it out, or pack the model again"
            )

    def check_layouts(self, layouts: Layouts, tier: str, tiers: Collection[str]) -> None:
        """Refuse a file that the kernels of ``tier`` cannot read.

        Parameters
        ----------
        layouts:
            Those of the tier's kernels.
        tier, tiers:
            The tier's name, and those that run here.

        Raises
        ------
        UnsupportedModelError
            A matrix lies in memory in another way than the kernels expect.
        """
        if all(
            tensor.weights is None or layouts.get((tensor.weights, tensor.sparse)) == tensor.layout
            for tensor in self.packed.values()
        ):
            return
        if self.tier == tier:
            reason = "packed by another version of Slimformer; pack the model again"
        else:
            reason = (
                f"packed for the kernels of {self.tier!r:.20}, whose weights lie in another order "
                f"than those of {tier}; pack the model again here"
            )
            if self.tier in tiers:
                reason += f", or run it with SLIMFORMER_ISA={self.tier}"
        raise UnsupportedModelError(f"{self.path}: {reason}")

    def __len__(self) -> int:
        return len(self.packed)

    def __iter__(self) -> Iterator[str]:
        return iter(self.packed)

    def __getitem__(self, name: str) -> Tensor:
        def refuse() -> NoReturn:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name}: packed weights can only be run; for anything else "
                "give the model that they were packed from"
            )

        return Tensor(self.packed[name].shape, "f32", refuse)


def open_packed(path: Path, config: ModelConfig) -> PackedTensors:
    """Map a packed file and check everything that its header says.

    Raises
    ------
    FormatError
        The file is truncated, damaged, hostile or does not fit the configuration.
    UnsupportedModelError
        It was written by another version of Slimformer.
    StorageError
        It cannot be read.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(_PREFIX.size)
            header, start = _read_header(path, prefix, file.read)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StorageError(f"{path}: cannot read: {error}") from error
    # Advice only: whether a mapped file can have huge pages is the file system's affair.
    for advice in ("MADV_HUGEPAGE", "MADV_WILLNEED"):
        if hasattr(mmap, advice):
            try:
                data.madvise(getattr(mmap, advice))
            except OSError:
                continue
    memory = np.frombuffer(data, np.uint8)
    entries = header.child("tensors")
    expected = config.tensor_shapes()
    if set(entries) != expected.keys():
        differing = sorted(set(entries) ^ expected.keys())[:5]
        raise FormatError(f"{path}: header and {path.parent} disagree about tensors {differing}")
    packed = {
        name: _read_entry(entries.child(name), shape, memory[min(start, memory.size) :])
        for name, shape in expected.items()
    }
    weights = header.text("weights")
    if weights not in get_args(WeightType):
        header.fail("weights", f"one of {', '.join(get_args(WeightType))}", weights)
    return PackedTensors(path, cast(WeightType, weights), header.text("tier"), packed)


def _read_header(path: Path, prefix: bytes, read: Callable[[int], bytes]) -> tuple[Fields, int]:
    """The header, and where the tensors begin."""
    if len(prefix) < _PREFIX.size or not prefix.startswith(MAGIC):
        raise FormatError(f"{path}: not a packed model: expected {MAGIC!r} and a header")
    _, version, length, digest = _PREFIX.unpack(prefix)
    if version != VERSION:
        raise UnsupportedModelError(
            f"{path}: format version: expected {VERSION}, found {version}; pack the model again"
        )
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"{path}: header: expected {MAX_HEADER_BYTES} bytes at most")
    text = read(length)
    if len(text) != length or hashlib.sha256(text).digest() != digest:
        raise FormatError(f"{path}: the header is truncated or damaged: its checksum differs")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: header: not UTF-8: {error}") from error
    where = f"{path}: header"
    return Fields(where, parse_json_object(decoded, where)), _data_start(length)


def _read_entry(
    entry: Fields, shape: tuple[int, ...], memory: npt.NDArray[np.uint8]
) -> PackedTensor:
    if entry.raw("shape") != list(shape):
        entry.fail("shape", str(list(shape)), str(entry.raw("shape")))
    offset, size = entry.integer("offset"), entry.integer("bytes")
    if offset < 0 or size < 0 or offset % _ALIGNMENT != 0 or offset + size > memory.size:
        raise FormatError(
            f"{entry.where}: expected {size} bytes at {offset}, a multiple of {_ALIGNMENT}, within "
            f"the {memory.size} that the file holds; is it truncated?"
        )
    kind = entry.text("type")
    if kind == _VECTOR and size != 4 * math.prod(shape):
        raise FormatError(f"{entry.where}: expected {shape} float32 values, found {size} bytes")
    if kind != _VECTOR and (len(shape) != 2 or kind not in get_args(WeightType)):
        entry.fail("type", f"{_VECTOR}, or one of {', '.join(get_args(WeightType))}", kind)
    return PackedTensor(
        shape=shape,
        weights=None if kind == _VECTOR else cast(WeightType, kind),
        sparse=entry.boolean("sparse", default=False),
        layout=0 if kind == _VECTOR else _read_layout(entry),
        data=memory[offset : offset + size],
    )


def _read_layout(entry: Fields) -> int:
    text = entry.text("layout")
    if re.fullmatch("[0-9a-f]{16}", text) is None:
        entry.fail("layout", "16 hexadecimal digits", text)
    return int(text, 16)


def write_packed(path: Path, weights: str, tier: str, tensors: Mapping[str, PackedTensor]) -> None:
    """Write a packed file; the bytes depend on the arguments alone."""
    entries: dict[str, Any] = {}
    position = 0
    for name, tensor in tensors.items():
        entry: dict[str, Any] = {
            "shape": list(tensor.shape),
            "type": tensor.weights or _VECTOR,
            "offset": position,
            "bytes": tensor.data.nbytes,
        }
        if tensor.weights is not None:
            entry |= {"sparse": tensor.sparse, "layout": f"{tensor.layout:016x}"}
        entries[name] = entry
        position = _round_up(position + tensor.data.nbytes, _ALIGNMENT)
    text = json.dumps(
        {"weights": weights, "tier": tier, "tensors": entries}, separators=(",", ":")
    ).encode()
    with path.open("wb") as file:
        file.write(_PREFIX.pack(MAGIC, VERSION, len(text), hashlib.sha256(text).digest()))
        file.write(text)
        for name, tensor in tensors.items():
            start = _data_start(len(text)) + entries[name]["offset"]
            file.write(bytes(start - file.tell()))
            file.write(tensor.data.data)


def _data_start(header_bytes: int) -> int:
    return _round_up(_PREFIX.size + header_bytes, _PAGE)


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit

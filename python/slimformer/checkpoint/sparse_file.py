"""Matrices without their zeros, in a safetensors file: a bit for each weight, then the others.

A matrix ``NAME`` of [outputs, inputs] becomes two tensors. ``NAME.mask`` is U8, [outputs,
inputs / 8 rounded up]: bit ``i % 8`` of byte ``i / 8`` of a row, counted from the lowest, is set
where the weight of input i is not zero, and bits beyond the last input are not. ``NAME.values``
holds those weights row by row, in the matrix's element type. A matrix with so few zeros that this
takes no fewer bytes is stored as it is, and so is everything that is no matrix.

The file has a name of its own: what looks for ``model.safetensors`` finds none, and says so,
instead of passing over tensors that it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import DTYPES, Tensor
from slimformer.checkpoint.layout import Layout
from slimformer.errors import FormatError

FILE = "model.sparse.safetensors"
MASK = ".mask"
VALUES = ".values"


def without_zeros(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the file.

    Every matrix is read once to count its zeros and again when its parts are written; only one is
    held at a time.
    """
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = _split(tensor) if len(tensor.shape) == 2 else None
        if found is None:
            parts[name] = tensor
        else:
            parts[name + MASK], parts[name + VALUES] = found
    return parts


def with_zeros(path: Path, layout: Layout, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a layout as far as the file holds them, matrices to be filled when read.

    Parameters
    ----------
    path
        The file, for messages.
    layout
        What is expected, with its shapes; that all of it is there is left to ``check_names``.
    stored
        What the file holds.

    Raises
    ------
    FormatError
        A mask without values or the reverse, or parts that do not fit the matrix. When a matrix is
        read: masks and values that contradict each other.
    """
    tensors = dict(stored)
    for entry in layout:
        mask, values = (tensors.pop(entry.name + part, None) for part in (MASK, VALUES))
        if mask is None and values is None:
            continue
        where = f"{path}: tensor {entry.name}"
        if mask is None or values is None or entry.name in tensors:
            raise FormatError(f"{where}: expected either the matrix or its {MASK} and {VALUES}")
        tensors[entry.name] = _join(where, entry.shape, mask, values)
    return tensors


def _split(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mask and values, where they take fewer bytes than the matrix."""
    outputs, inputs = tensor.shape
    count = int(np.count_nonzero(_bits(tensor.read())))
    mask_shape = (outputs, -(-inputs // 8))
    values = Tensor((count,), tensor.dtype, lambda: _kept(tensor.read()))
    mask = Tensor(mask_shape, "u8", lambda: _mask(tensor.read()))
    return (mask, values) if mask.nbytes + values.nbytes < tensor.nbytes else None


def _bits(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The elements as integers: a zero with a sign is none, or it would lose it."""
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


def _mask(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.packbits(_bits(values) != 0, axis=1, bitorder="little")


def _kept(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    kept: npt.NDArray[Any] = np.ascontiguousarray(values)[_bits(values) != 0]
    return kept


def _join(where: str, shape: tuple[int, ...], mask: Tensor, values: Tensor) -> Tensor:
    if len(shape) != 2:
        raise FormatError(f"{where}: expected a matrix, found a mask of shape {shape}")
    outputs, inputs = shape
    packed = (outputs, -(-inputs // 8))
    if mask.dtype != "u8" or mask.shape != packed:
        raise FormatError(
            f"{where}{MASK}: expected U8 of shape {packed}, found {mask.dtype} of {mask.shape}"
        )
    if values.dtype not in DTYPES or len(values.shape) != 1 or values.shape[0] > math.prod(shape):
        raise FormatError(
            f"{where}{VALUES}: expected one axis of at most {math.prod(shape)} weights, found "
            f"{values.dtype} of {values.shape}"
        )

    def read() -> npt.NDArray[Any]:
        bits = np.unpackbits(mask.read(), axis=1, bitorder="little").view(np.bool_)
        if bits[:, inputs:].any():
            raise FormatError(f"{where}{MASK}: expected no bit beyond input {inputs - 1} of a row")
        kept = bits[:, :inputs]
        found = values.read()
        count = int(np.count_nonzero(kept))
        if count != len(found):
            raise FormatError(
                f"{where}: expected as many values as bits in the mask, found {len(found)} "
                f"values and {count} bits"
            )
        if np.count_nonzero(_bits(found)) != count:
            raise FormatError(f"{where}{VALUES}: expected no zeros among the values")
        matrix = np.zeros(shape, found.dtype)
        matrix[kept] = found
        return matrix

    return Tensor(shape, values.dtype, read)

"""What the engine makes of weights and inputs that it keeps as whole numbers.

Written from cpp/kernels/quantisation.h: float32 arithmetic as it stands there, then the exact
values in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

ROTATED_BLOCK = 64
"""Inputs that are rotated together for products with int8 weights."""

INT8_GROUP = 192
"""Inputs that have one scale there, of weights and of activations."""

INT4_GROUP = 32
INT4_INPUTS = 64
"""int4 weights, and the activations that they multiply, that have one scale."""

SMALLEST_SCALE = np.float32(2.0**-126)

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def rotated(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Whole blocks of [rows, inputs] transformed; twice gives ROTATED_BLOCK times the values."""
    rows, inputs = values.shape
    whole = inputs // ROTATED_BLOCK * ROTATED_BLOCK
    blocks = values[:, :whole].reshape(rows, -1, ROTATED_BLOCK)
    stride = ROTATED_BLOCK // 2
    while stride > 0:
        pairs = blocks.reshape(rows, -1, 2, stride)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        blocks = np.stack([low + high, low - high], axis=2)
        stride //= 2
    return np.concatenate([blocks.reshape(rows, whole), values[:, whole:]], axis=1)


def rotated_weights(w: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Weights [outputs, inputs] whose product with rotated inputs is that of both as they were."""
    whole = w.shape[1] // ROTATED_BLOCK * ROTATED_BLOCK
    turned = rotated(w)
    turned[:, :whole] /= ROTATED_BLOCK
    return turned


def int8_weights(w: F32) -> F64:
    """Rotated weights [outputs, inputs] as int8 holds them."""
    groups, scale = _groups(rotated_weights(w), INT8_GROUP)
    bits = scale.view(np.uint32)
    scale = ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
    return _rounded(groups, scale, w.shape[1])


def int8_inputs(x: F32) -> F64:
    """Inputs [rows, inputs] as products with int8 weights read them, rotated."""
    groups, scale = _groups(rotated(x), INT8_GROUP)
    return _rounded(groups, scale, x.shape[1])


def int4_inputs(x: F32) -> F64:
    """Inputs [rows, inputs] as products with int4 weights read them."""
    groups, scale = _groups(x, INT4_INPUTS)
    return _rounded(groups, scale, x.shape[1])


def _groups(values: F32, size: int) -> tuple[F32, F32]:
    """Values [rows, groups, size], padded with zeros, and scales [rows, groups, 1]."""
    rows, inputs = values.shape
    padded = np.zeros((rows, -(-inputs // size) * size), np.float32)
    padded[:, :inputs] = values
    groups = padded.reshape(rows, -1, size)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    return groups, np.maximum(largest / np.float32(127), SMALLEST_SCALE)


def _rounded(groups: F32, scale: F32, inputs: int) -> F64:
    inverse = np.float32(1) / scale
    whole: F64 = np.rint(groups * inverse).astype(np.float64)
    values = (whole * scale.astype(np.float64)).reshape(len(groups), -1)
    return values[:, :inputs]

"""What the engine makes of weights and inputs that it keeps as whole numbers.

Written from cpp/kernels/quantisation.h: float32 arithmetic as it stands there, then the exact
values in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

GROUP = 64
PART = 32
"""Inputs of a part of int4 weights."""

SMALLEST_SCALE = np.float32(2.0**-126)

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def int8_weights(w: F32) -> F64:
    """Weights [outputs, inputs] once packed as int8."""
    groups, scale = _groups(w)
    bits = scale.view(np.uint32)
    scale = ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
    return _rounded(groups, scale, w.shape[1])


def int8_inputs(x: F32) -> F64:
    """Inputs [rows, inputs] as products with such weights read them."""
    groups, scale = _groups(x)
    return _rounded(groups, scale, x.shape[1])


def _groups(values: F32) -> tuple[F32, F32]:
    """Values [rows, groups, GROUP], padded with zeros, and scales [rows, groups, 1]."""
    rows, inputs = values.shape
    padded = np.zeros((rows, -(-inputs // GROUP) * GROUP), np.float32)
    padded[:, :inputs] = values
    groups = padded.reshape(rows, -1, GROUP)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    return groups, np.maximum(largest / np.float32(127), SMALLEST_SCALE)


def _rounded(groups: F32, scale: F32, inputs: int) -> F64:
    inverse: npt.NDArray[Any] = np.float32(1) / scale
    whole = np.rint(groups * inverse)
    values = whole.astype(np.float64) * scale.astype(np.float64)
    return values.reshape(len(groups), -1)[:, :inputs]

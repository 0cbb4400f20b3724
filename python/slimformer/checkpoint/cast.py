"""Checkpoints in another element type."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint, DtypeChoice, Tensor
from slimformer.errors import ConfigError


def cast(checkpoint: Checkpoint, dtype: DtypeChoice) -> Checkpoint:
    """The same model with every tensor rounded to ``dtype`` when it is read.

    Parameters
    ----------
    checkpoint:
        The model; it is not changed.
    dtype:
        ``f32``, ``bf16`` (to nearest even), ``f16``, or ``auto`` for each tensor's own.

    Raises
    ------
    ConfigError
        ``dtype`` is none of these; or, when a tensor is read, it has values beyond the range
        of ``f16``.
    """
    if dtype == "auto":
        return checkpoint
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: expected auto, {', '.join(DTYPES)}, found {dtype!r}")
    tensors = {name: _cast_tensor(name, t, dtype) for name, t in checkpoint.tensors.items()}
    return dataclasses.replace(checkpoint, tensors=tensors)


def _cast_tensor(name: str, tensor: Tensor, dtype: str) -> Tensor:
    if tensor.dtype == dtype:
        return tensor

    def read() -> npt.NDArray[Any]:
        values = tensor.read()
        with np.errstate(over="ignore", invalid="ignore"):
            result = values.astype(DTYPES[dtype])
        if dtype == "f16" and bool(np.any(np.isinf(result) & np.isfinite(values))):
            raise ConfigError(f"tensor {name}: values beyond the range of f16; use bf16 or f32")
        return result

    return Tensor(tensor.shape, dtype, read)

"""Models to PyTorch and back."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint import load
from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint
from slimformer.errors import ConfigError, DataError
from slimformer.train.optional import require_torch

if TYPE_CHECKING:
    from torch import nn

    from slimformer.train.module import TorchModel


def to_torch(model: Checkpoint | str | os.PathLike[str]) -> TorchModel:
    """A model of any shape as an ``nn.Module``, to be trained in a loop of one's own.

    Parameters
    ----------
    model
        A checkpoint, or what ``slimformer.load`` takes; it is not changed.

    Returns
    -------
    A module with parameters in float32 under the checkpoint's names. It takes token ids
    [sequences, tokens] and gives logits [sequences, tokens, vocab_size].

    Raises
    ------
    MissingPackageError
        PyTorch is not installed.
    """
    require_torch("to_torch")
    import torch

    from slimformer.train.module import TorchModel

    checkpoint = model if isinstance(model, Checkpoint) else load(model)
    with torch.device("meta"):
        module = TorchModel(checkpoint.config)
    values = {
        name: torch.from_numpy(np.array(checkpoint.read(name), dtype=np.float32))
        for name in checkpoint.config.tensor_shapes()
    }
    module.load_state_dict(values, assign=True)
    module.requires_grad_()
    return module


def from_torch(module: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """The model with the module's weights, rounded to the types that its tensors have.

    Parameters
    ----------
    module
        What ``to_torch`` gave, or another module with the same parameters.
    checkpoint
        The model that the module was made from; it is not changed.

    Raises
    ------
    MissingPackageError
        PyTorch is not installed.
    ConfigError
        The module's parameters are not those of the checkpoint.
    DataError
        Weights that are not finite, or not in the type that they are kept in.
    """
    require_torch("from_torch")
    state = module.state_dict()
    expected = checkpoint.config.tensor_shapes()
    found = {name: tuple(value.shape) for name, value in state.items()}
    if found != expected:
        wrong = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        raise ConfigError(
            f"from_torch: parameter {wrong[0]} and {len(wrong) - 1} more: expected shape "
            f"{expected.get(wrong[0], 'none')}, found {found.get(wrong[0], 'none')}"
        )
    values = {
        name: _rounded(name, value.detach().float().cpu().numpy(), checkpoint.tensors[name].dtype)
        for name, value in state.items()
    }
    return dataclasses.replace(checkpoint.with_tensors(values), quantised=False)


def _rounded(name: str, values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.array(values, dtype=DTYPES[dtype])
    if not np.isfinite(rounded.astype(np.float32)).all():
        raise DataError(f"tensor {name}: the module has values that are not finite in {dtype}")
    return rounded

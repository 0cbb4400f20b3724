"""What the loss feels of errors in what is read of the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.errors import DataError
from slimformer.progress import Progress, silent
from slimformer.train.convert import to_torch
from slimformer.train.optional import require_torch

Array = npt.NDArray[np.float64]


def stream_sensitivity(
    checkpoint: Checkpoint, windows: npt.NDArray[np.int32], *, progress: Progress = silent
) -> Array:
    """Second moment of the loss's gradient by the normalised stream, summed over all that reads it.

    To second order, an error e in what is read at one place costs half of ``e' F e`` nats, with
    the empirical Fisher matrix F of that place (as in Singh and Alistarh 2020, WoodFisher, arXiv
    2004.14340, for weights). The places' matrices resemble each other, and are summed.

    Parameters
    ----------
    checkpoint
        A model that normalises what its sub-blocks read, before the gains of its norms.
    windows
        Text, [windows, tokens].

    Returns
    -------
    Mean over the tokens, [channels, channels].

    Raises
    ------
    MissingPackageError
        PyTorch is not installed.
    DataError
        Gradients on the text that are not finite.
    """
    require_torch("stream_sensitivity")
    import torch
    from torch.nn import functional

    module = to_torch(checkpoint).requires_grad_(requires_grad=False)
    read: list[tuple[Any, Any]] = []
    for name, part in module.named_modules():
        if name.endswith(("attention.norm", "ffn.norm", "final_norm")):
            part.register_forward_hook(_keeper(read))
    offset = checkpoint.config.norm_offset
    total = torch.zeros((checkpoint.config.n_channels,) * 2, dtype=torch.float64)
    for index, window in enumerate(windows):
        progress("measure sensitivity", index, len(windows))
        read.clear()
        tokens = torch.from_numpy(window.astype(np.int64))
        logits = module(tokens[None])[0, :-1]
        functional.cross_entropy(logits, tokens[1:], reduction="sum").backward()
        for output, gains in read:
            if output.grad is not None:
                gradient = output.grad[0] * (gains + offset)
                total += (gradient.T @ gradient).double()
    progress("measure sensitivity", len(windows), len(windows))
    found: Array = total.numpy() / windows.size
    if not np.isfinite(found).all():
        raise DataError("gradients on the calibration text are not finite")
    return found


def _keeper(read: list[tuple[Any, Any]]) -> Callable[[Any, Any, Any], Any]:
    """A hook that keeps what norms give, and their gains."""

    def keep(norm: Any, _: Any, output: Any) -> Any:
        if not output.requires_grad:  # nothing before it has a gradient
            output.requires_grad_()
        output.retain_grad()
        read.append((output, norm.weight))
        return output

    return keep

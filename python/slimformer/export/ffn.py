"""FFNs, dense and routed ones, filled up with neurons of zeros to one shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from slimformer.config import FfnConfig, ModelConfig, RoutedFfnConfig
from slimformer.errors import UnsupportedModelError
from slimformer.export.blocks import Block, Change, gathered, reshaped
from slimformer.prune.structures import ffn_axes

AnyFfn = FfnConfig | RoutedFfnConfig


def widest_ffn(ffns: Sequence[AnyFfn], name: str) -> AnyFfn:
    """The shape that these FFNs of the model ``name`` are filled up to.

    Raises
    ------
    UnsupportedModelError
        Some have experts and others not, or another number of them: routers have no bias, so that
        no expert can be added that no token runs.
    """
    routed = [ffn for ffn in ffns if isinstance(ffn, RoutedFfnConfig)]
    dense = [ffn for ffn in ffns if isinstance(ffn, FfnConfig)]
    if not routed:
        return dataclasses.replace(
            next(iter(dense), FfnConfig(1)),
            n_neurons=max((ffn.n_neurons for ffn in dense), default=1),
            bias=any(ffn.bias for ffn in dense),
        )
    counts = sorted({len(ffn.experts) for ffn in routed})
    if dense or len(counts) > 1:
        found = (
            "links or neurons beside experts"
            if dense
            else f"layers with {' and '.join(map(str, counts))} experts"
        )
        raise UnsupportedModelError(
            f"{name}: {found} have no equivalent in the shape that was asked for; keep as many "
            "experts in every layer, or export it without padding, to huggingface"
        )
    width = max(max(ffn.experts) for ffn in routed)
    return dataclasses.replace(routed[0], experts=(width,) * counts[0])


def widened(config: ModelConfig, block: Block, widest: AnyFfn) -> tuple[Block, list[Change]]:
    """The FFN with neurons of zeros up to that many, and with biases if they are asked for."""
    ffn = block.shape
    shape: AnyFfn
    if isinstance(widest, RoutedFfnConfig):
        assert isinstance(ffn, RoutedFfnConfig)
        shape = dataclasses.replace(ffn, experts=widest.experts)
    else:
        assert isinstance(ffn, FfnConfig)
        shape = dataclasses.replace(ffn, n_neurons=widest.n_neurons, bias=widest.bias)
    if shape == ffn:
        return block, []
    width = max(shape.experts) if isinstance(shape, RoutedFfnConfig) else shape.n_neurons
    made = {}
    for axis in ffn_axes(ffn):
        if axis.unit == "neurons":
            tensor = block.tensors[axis.part]
            entries = np.full(width, -1, np.intp)
            entries[: tensor.shape[axis.axis]] = np.arange(tensor.shape[axis.axis])
            made[axis.part] = gathered(tensor, entries, axis.axis)
    filled = reshaped(config, block, shape, made)
    added = filled.parameters - block.parameters
    return filled, [Change(block.where, "filled up with neurons of zeros", added)]

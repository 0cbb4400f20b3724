"""LinearPatch: a block of layers goes, and a matrix at the cut repairs the residual stream.

Chen et al. 2025, arXiv 2505.24680. The paper's patch multiplies the stream, by a diagonal between
two Hadamard rotations; here it is a full matrix fitted by least squares (as in LinearPatch-R),
read from the normalised stream and added to it, because that is what a layer can say: a link.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from slimformer.baselines.block import advance, closest_block, stream_before, without
from slimformer.baselines.task import Task
from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint, Tensor
from slimformer.config import LayerConfig, LinkConfig
from slimformer.engine import Moments
from slimformer.prune.outputs import normalised

RIDGE = 1e-3
"""Relative to the mean diagonal of the Gram matrix."""


def prune(task: Task) -> Checkpoint:
    """The pruned model. It has no recipe, because a recipe cannot say what is new."""
    channels = task.dense.config.n_channels
    block = closest_block(task, extra=channels * channels + channels)
    matrix = _patch(task, block)
    slim = task.cut(without(task, block))
    layers = list(slim.config.layers)
    layers.insert(block.start, LayerConfig(LinkConfig("full"), None))
    dtype = DTYPES[slim.tensors["embedding.weight"].dtype]
    tensors = {_moved(name, block.start): tensor for name, tensor in slim.tensors.items()}
    prefix = f"layers.{block.start}.attention"
    ones = np.full(channels, 1 - slim.config.norm_offset, dtype)
    tensors[f"{prefix}.norm.weight"] = Tensor.of(ones)
    if slim.config.norm == "layer":
        tensors[f"{prefix}.norm.bias"] = Tensor.of(np.zeros(channels, dtype))
    tensors[f"{prefix}.link.weight"] = Tensor.of(matrix.astype(dtype))
    config = dataclasses.replace(slim.config, layers=tuple(layers))
    return dataclasses.replace(slim, config=config, tensors=tensors, recipe=None)


def _moved(name: str, patch: int) -> str:
    """A tensor's name when a layer has been put in at ``patch``."""
    head, _, rest = name.partition(".")
    if head != "layers":
        return name
    layer, _, part = rest.partition(".")
    return f"layers.{int(layer) + (int(layer) >= patch)}.{part}"


def _patch(task: Task, block: range) -> np.ndarray:
    """The link's matrix, [outputs, inputs]."""
    config = task.dense.config
    stream = stream_before(task, block.start)
    normed = normalised(config, stream)
    change = -stream
    for index in block:
        advance(task, index, stream)
    change += stream
    channels = config.n_channels
    moments = Moments(channels, gram=True, target_width=channels, threads=task.threads)
    moments.update(normed.reshape(-1, channels), change.reshape(-1, channels))
    ridge = RIDGE * float(np.trace(moments.gram)) / channels
    solution = np.linalg.solve(moments.gram + ridge * np.eye(channels), moments.cross)
    return np.ascontiguousarray(solution.T)

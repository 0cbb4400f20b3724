"""ReplaceMe: a block of layers goes, and a linear map takes its place inside the layer before it.

Shopkhoev et al. 2025, arXiv 2505.02819: with X what the FFN before the block adds and R the stream
that it adds to, T minimises ``|X T - (H - R)|^2`` for H the stream after the block; T is folded
into the FFN's down-projection, so that nothing is added to the model.
"""

from __future__ import annotations

import numpy as np

from slimformer.baselines.block import advance, closest_block, stream_before, without
from slimformer.baselines.task import Task
from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint
from slimformer.config import FfnConfig
from slimformer.engine import Moments
from slimformer.errors import ConfigError
from slimformer.prune.stream import chunks, layer_engine

RIDGE = 1e-3
"""Relative to the mean diagonal of the Gram matrix."""


def prune(task: Task) -> Checkpoint:
    """The pruned model."""
    block = closest_block(task, first=1)
    before = block.start - 1
    if not isinstance(task.dense.config.layers[before].ffn, FfnConfig):
        raise ConfigError(f"ReplaceMe: layer {before} before the block has no FFN to fold into")
    transform = _transform(task, block)
    slim = task.cut(without(task, block))
    name = f"layers.{before}.ffn.down"
    values = {}
    for part in ("weight", "bias"):
        if f"{name}.{part}" in slim.tensors:
            old = slim.tensors[f"{name}.{part}"]
            new = transform.T @ task.dense.read_f32(f"{name}.{part}")
            values[f"{name}.{part}"] = new.astype(DTYPES[old.dtype])
    return slim.with_tensors(values)


def _transform(task: Task, block: range) -> np.ndarray:
    """T, [channels, channels]."""
    stream = stream_before(task, block.start - 1)
    engine = layer_engine(task.dense, block.start - 1, threads=task.threads)
    between = np.empty_like(stream)
    for rows, after, captured in chunks(engine, stream, capture=["ffn_input"]):
        between[rows] = captured["ffn_input"]
        stream[rows] = after
    added = stream - between
    for index in block:
        advance(task, index, stream)
    channels = stream.shape[-1]
    moments = Moments(channels, gram=True, target_width=channels, threads=task.threads)
    moments.update(added.reshape(-1, channels), (stream - between).reshape(-1, channels))
    ridge = RIDGE * float(np.trace(moments.gram)) / channels
    return np.linalg.solve(moments.gram + ridge * np.eye(channels), moments.cross)

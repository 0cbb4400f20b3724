"""Neurons layer by layer: each layer is pruned on what the pruned layers before it give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.baselines.task import Task
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import FfnConfig
from slimformer.engine import Moments
from slimformer.prune.stream import chunks, embed, layer_engine

Array = npt.NDArray[np.float64]

Choose = Callable[[Array, Moments, int], tuple[tuple[int, ...], Array]]
"""From the down-projection [channels, neurons], moments of its inputs and a number of neurons:
those that stay, ascending, and the columns of the new down-projection [channels, number]."""


def prune_in_turn(task: Task, choose: Choose, *, gram: bool) -> Checkpoint:
    """The model with the same share of neurons in every layer, chosen by ``choose``."""
    stream = embed(task.dense, task.windows)
    counts = task.even_neurons()
    kept: dict[int, tuple[int, ...]] = {}
    weights: dict[str, npt.NDArray[Any]] = {}
    slim = task.dense
    for index, layer in enumerate(task.dense.config.layers):
        task.progress("prune layers", index, len(task.dense.config.layers))
        if index in counts:
            assert isinstance(layer.ffn, FfnConfig)
            moments = Moments(layer.ffn.n_neurons, gram=gram, threads=task.threads)
            whole = layer_engine(task.dense, index, threads=task.threads)
            for _ in chunks(whole, stream, moments={"ffn_neurons": moments}):
                pass
            name = f"layers.{index}.ffn.down.weight"
            down = task.dense.read_f32(name).astype(np.float64)
            kept[index], new = choose(down, moments, counts[index])
            slim = task.neurons(kept)
            weights[name] = new.astype(slim.read(name).dtype)
            slim = slim.with_tensors(weights)
        for rows, after, _ in chunks(layer_engine(slim, index, threads=task.threads), stream):
            stream[rows] = after
    return slim

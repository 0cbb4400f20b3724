"""FLAP: units whose outputs fluctuate least go, and their mean output becomes a bias.

An et al. 2023, arXiv 2312.11983: a channel's score is the variance of its input times the squared
norm of its weights, standardised within its layer; a KV group has the mean of its channels; over
the whole model the lowest go, priced by their parameters (the biases come on top).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slimformer.baselines.task import Task
from slimformer.checkpoint.checkpoint import Checkpoint, Tensor
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig
from slimformer.engine import Moments
from slimformer.errors import BudgetError
from slimformer.prune.outputs import PROJECTIONS
from slimformer.prune.recipe import KeptFfn, KeptLayer, Recipe, keep_all, keep_heads
from slimformer.prune.stream import TAPS, chunks, embed, layer_engine
from slimformer.prune.structures import parameters_price
from slimformer.prune.surgery import kept_columns

Array = npt.NDArray[np.float64]


class _Unit(NamedTuple):
    """A KV group or neuron, its score and its weight in parameters."""

    score: float
    layer: int
    sub_block: str
    number: int
    price: int


def prune(task: Task) -> Checkpoint:
    """The pruned model, with a bias on the projections that lost inputs."""
    config = task.dense.config
    means: dict[tuple[int, str], Array] = {}
    units: list[_Unit] = []
    stream = embed(task.dense, task.windows)
    for index, layer in enumerate(config.layers):
        task.progress("measure layers", index, len(config.layers))
        moments = _moments(layer, task.threads)
        engine = layer_engine(task.dense, index, threads=task.threads)
        sites = {TAPS[name]: held for name, held in moments.items()}
        for rows, after, _ in chunks(engine, stream, moments=sites):
            stream[rows] = after
        for sub_block, held in moments.items():
            mean = means[index, sub_block] = held.sum / held.count
            variance = held.sum_squares / held.count - mean**2
            units += _units(task, index, sub_block, variance)
    return _compensated(task, _recipe(task, units), means)


def _moments(layer: LayerConfig, threads: int) -> dict[str, Moments]:
    widths = {}
    if isinstance(layer.attention, AttentionConfig):
        widths["attention"] = layer.attention.n_heads * layer.attention.value_dim
    if isinstance(layer.ffn, FfnConfig):
        widths["ffn"] = layer.ffn.n_neurons
    return {name: Moments(width, gram=False, threads=threads) for name, width in widths.items()}


def _units(task: Task, index: int, sub_block: str, variance: Array) -> list[_Unit]:
    name = f"layers.{index}.{PROJECTIONS[sub_block]}.weight"
    weight = task.dense.read_f32(name).astype(np.float64)
    scores = variance * np.einsum("oi,oi->i", weight, weight)
    scores = (scores - scores.mean()) / max(float(scores.std()), 1e-150)
    price = parameters_price(task.dense.config, index)
    attention = task.dense.config.layers[index].attention
    if sub_block == "ffn":
        return [_Unit(float(s), index, "ffn", n, price.neuron) for n, s in enumerate(scores)]
    assert isinstance(attention, AttentionConfig)
    heads = scores.reshape(attention.n_heads, -1).mean(axis=1)
    reads = np.asarray(attention.q_to_kv)
    return [
        _Unit(
            float(heads[reads == kv].mean()),
            index,
            "attention",
            kv,
            price.kv_head + int((reads == kv).sum()) * price.head,
        )
        for kv in range(attention.n_kv_heads)
    ]


def _recipe(task: Task, units: list[_Unit]) -> Recipe:
    """Without the units of lowest score; of every sub-block one stays."""
    config = task.dense.config
    weight = float(config.non_embedding_parameters())
    left: dict[tuple[int, str], set[int]] = {}
    for unit in units:
        left.setdefault((unit.layer, unit.sub_block), set()).add(unit.number)
    for unit in sorted(units):
        if weight <= task.budget.limit:
            break
        mates = left[unit.layer, unit.sub_block]
        if len(mates) > 1:
            mates.remove(unit.number)
            weight -= unit.price
    if weight > task.budget.limit:
        raise BudgetError(f"{task.budget.label}: FLAP keeps a unit of every sub-block")
    layers = tuple(_kept(index, layer, left) for index, layer in enumerate(config.layers))
    return Recipe(task.dense.name, task.dense.fingerprint, layers)


def _kept(index: int, layer: LayerConfig, left: dict[tuple[int, str], set[int]]) -> KeptLayer:
    kept = keep_all(index, layer)
    attention, ffn = kept.attention, kept.ffn
    if isinstance(layer.attention, AttentionConfig):
        groups = left[index, "attention"]
        heads = [head for head, kv in enumerate(layer.attention.q_to_kv) if kv in groups]
        attention = keep_heads(layer.attention, tuple(heads))
    if isinstance(layer.ffn, FfnConfig):
        ffn = KeptFfn(tuple(sorted(left[index, "ffn"])))
    return KeptLayer(index, attention, ffn)


def _compensated(task: Task, recipe: Recipe, means: dict[tuple[int, str], Array]) -> Checkpoint:
    """The cut model; what went contributes its mean through a bias."""
    slim = task.cut(recipe)
    layers = list(slim.config.layers)
    tensors: dict[str, Tensor] = {}
    for (index, sub_block), mean in means.items():
        dense_layer = task.dense.config.layers[index]
        kept = kept_columns(dense_layer, recipe.layers[index])[sub_block]
        if len(kept) == len(mean):
            continue
        name = f"layers.{index}.{PROJECTIONS[sub_block]}"
        gone = np.delete(np.arange(len(mean)), kept)
        lost = task.dense.read_f32(f"{name}.weight")[:, gone] @ mean[gone]
        if f"{name}.bias" in slim.tensors:
            lost = lost + slim.read_f32(f"{name}.bias")
        dtype = slim.read(f"{name}.weight").dtype
        layers[index], more = _with_bias(layers[index], index, sub_block, dtype)
        tensors.update({part: tensor for part, tensor in more.items() if part not in slim.tensors})
        tensors[f"{name}.bias"] = Tensor.of(lost.astype(dtype))
    config = dataclasses.replace(slim.config, layers=tuple(layers))
    return dataclasses.replace(slim, config=config, tensors={**slim.tensors, **tensors})


def _with_bias(
    layer: LayerConfig, index: int, sub_block: str, dtype: np.dtype[Any]
) -> tuple[LayerConfig, dict[str, Tensor]]:
    """The layer with biases, and zeros for those that come with them."""
    if sub_block == "attention":
        assert isinstance(layer.attention, AttentionConfig)
        attention = dataclasses.replace(layer.attention, output_bias=True)
        return dataclasses.replace(layer, attention=attention), {}
    assert isinstance(layer.ffn, FfnConfig)
    zeros = Tensor.of(np.zeros(layer.ffn.n_neurons, dtype))
    ffn = dataclasses.replace(layer.ffn, bias=True)
    more = {f"layers.{index}.ffn.{part}.bias": zeros for part in ("gate", "up")}
    return dataclasses.replace(layer, ffn=ffn), more

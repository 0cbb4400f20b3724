"""Magnitude: a unit costs the squared norm of all weights that go with it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig, RoutedFfnConfig
from slimformer.prune.importance.scores import LayerScores, sum_groups
from slimformer.prune.structures import Axis, attention_axes, ffn_axes

Array = npt.NDArray[np.float64]


def score(checkpoint: Checkpoint, index: int) -> LayerScores:
    """Rate every structure of one layer; reads weights only.

    A query head counts its own rows and columns, a KV group those of its heads and of its keys
    and values, an expert its neurons and its row of the router.
    """
    layer = checkpoint.config.layers[index]
    heads = groups = values = neurons = experts = None
    attention = ffn = None
    if isinstance(layer.attention, AttentionConfig):
        axes = attention_axes(layer.attention)
        prefix = f"layers.{index}.attention."
        heads = _norms(checkpoint, prefix, axes, "heads", layer.attention.n_heads)
        groups = sum_groups(layer.attention, heads)
        groups += _norms(checkpoint, prefix, axes, "kv_heads", layer.attention.n_kv_heads)
        values = _of_values(checkpoint, prefix, axes, layer.attention.value_dim)
        attention = float(groups.sum())
    if isinstance(layer.ffn, FfnConfig):
        prefix = f"layers.{index}.ffn."
        neurons = _norms(checkpoint, prefix, ffn_axes(layer.ffn), "neurons", layer.ffn.n_neurons)
        ffn = float(neurons.sum())
    if isinstance(layer.ffn, RoutedFfnConfig):
        prefix = f"layers.{index}.ffn."
        own = [
            _norms(checkpoint, f"{prefix}experts.{e}.", ffn_axes(expert), "neurons", width)
            for e, width in enumerate(layer.ffn.experts)
            for expert in (layer.ffn.expert(e),)
        ]
        axes = ffn_axes(layer.ffn)
        experts = _norms(checkpoint, prefix, axes, "experts", len(own))
        experts += [float(norms.sum()) for norms in own]
        neurons = np.concatenate(own)
        ffn = float(experts.sum())
    whole = None if attention is None and ffn is None else (attention or 0.0) + (ffn or 0.0)
    return LayerScores(whole, attention, ffn, groups, heads, neurons, experts, values)


def _of_values(
    checkpoint: Checkpoint, prefix: str, axes: tuple[Axis, ...], value_dim: int
) -> Array:
    """Squared norm of what each entry of the values owns, [value_dim]."""
    total = np.zeros(value_dim)
    for axis in axes:
        if axis.of_values:
            rows = np.moveaxis(checkpoint.read_f32(prefix + axis.part), axis.axis, 0)
            by_unit = rows.reshape(-1, value_dim, rows[0].size)
            total += np.einsum("uvi,uvi->v", by_unit, by_unit, dtype=np.float64)
    return total


def _norms(
    checkpoint: Checkpoint, prefix: str, axes: tuple[Axis, ...], unit: str, count: int
) -> Array:
    """Squared norm of what each unit owns, [count]."""
    total = np.zeros(count)
    for axis in axes:
        if axis.unit == unit:
            values = checkpoint.read_f32(prefix + axis.part)
            rows = np.moveaxis(values, axis.axis, 0).reshape(count, -1)
            total += np.einsum("ui,ui->u", rows, rows, dtype=np.float64)
    return total

"""Magnitude: a unit costs the squared norm of all weights that go with it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig, RoutedFfnConfig
from slimformer.prune.importance.scores import LayerScores, sum_groups
from slimformer.prune.recipe import HeadPart
from slimformer.prune.structures import Axis, attention_axes, ffn_axes, part_entries

Array = npt.NDArray[np.float64]


def score(checkpoint: Checkpoint, index: int) -> LayerScores:
    """Rate every structure of one layer; reads weights only.

    A query head counts its own rows and columns, a KV group those of its heads and of its keys
    and values, an expert its neurons and its row of the router.
    """
    layer = checkpoint.config.layers[index]
    heads = groups = values = pairs = neurons = experts = None
    attention = ffn = None
    if isinstance(layer.attention, AttentionConfig):
        axes = attention_axes(layer.attention)
        prefix = f"layers.{index}.attention."
        heads = _norms(checkpoint, prefix, axes, "heads", layer.attention.n_heads)
        groups = sum_groups(layer.attention, heads)
        groups += _norms(checkpoint, prefix, axes, "kv_heads", layer.attention.n_kv_heads)
        values = _of_parts(checkpoint, prefix, axes, layer.attention, "value_dims")
        pairs = _of_parts(checkpoint, prefix, axes, layer.attention, "rotary_pairs")
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
    return LayerScores(whole, attention, ffn, groups, heads, neurons, experts, values, pairs)


def _of_parts(
    checkpoint: Checkpoint,
    prefix: str,
    axes: tuple[Axis, ...],
    attention: AttentionConfig,
    part: HeadPart,
) -> Array | None:
    """Squared norm of what each of these owns in all heads, [parts]; none where none may go."""
    entries = part_entries(attention, part)
    total = np.zeros(len(entries))
    for axis in axes:
        if axis.parts == part:
            rows = np.moveaxis(checkpoint.read_f32(prefix + axis.part), axis.axis, 0)
            own = rows.reshape(-1, axis.width, rows[0].size)[:, entries]
            total += np.einsum("upei,upei->p", own, own, dtype=np.float64)
    return total if len(total) else None


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

"""Random models and random recipes for them."""

from __future__ import annotations

from typing import get_args

import numpy as np
from hypothesis import strategies as st

from reference.models import random_checkpoint, random_config
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinkConfig,
    LinkKind,
    ModelConfig,
    RopeConfig,
    RoutedFfnConfig,
)
from slimformer.prune.recipe import (
    KeptAttention,
    KeptExperts,
    KeptFfn,
    KeptLayer,
    KeptLink,
    NewLink,
    Recipe,
    keep_all,
    part_count,
)
from slimformer.prune.structures import channel_axes
from slimformer.prune.vocabulary import Description

seeds = st.integers(0, 1 << 31)


def random_model(rng: np.random.Generator, *, ragged: bool = True) -> Checkpoint:
    config = random_config(rng, ragged=ragged, experts=ragged and rng.random() < 0.3)
    return random_checkpoint(config, int(rng.integers(1 << 31)), tokenizer=True)


def random_recipe(
    rng: np.random.Generator,
    checkpoint: Checkpoint,
    *,
    masked: bool = False,
    links: bool = True,
) -> Recipe:
    """Any valid recipe: parts of each kind go at random, or links stand in.

    ``masked``: only what a mask can switch off. ``links``: whether there are any.
    """
    channels = None
    if not masked and checkpoint.config.norm == "rms" and rng.random() < 0.5:
        channels = random_units(rng, checkpoint.config.n_channels)
    width = checkpoint.config.n_channels if channels is None else len(channels)
    layers = []
    for index, layer in enumerate(checkpoint.config.layers):
        kept = random_layer(rng, index, layer, width, masked=masked, links=links)
        if kept is not None:
            layers.append(kept)
    vocabulary = None if masked or rng.random() < 0.5 else random_rows(rng, checkpoint)
    return Recipe(
        checkpoint.name,
        checkpoint.fingerprint,
        tuple(layers),
        vocabulary=vocabulary,
        channels=channels,
    )


def random_rows(rng: np.random.Generator, checkpoint: Checkpoint) -> tuple[int, ...]:
    """Rows of the vocabulary, those among them that always stay."""
    assert checkpoint.tokenizer is not None
    count = checkpoint.config.vocab_size
    required = Description(checkpoint.tokenizer, count).required()
    return tuple(sorted(required.union(random_units(rng, count))))


def random_layer(
    rng: np.random.Generator,
    index: int,
    layer: LayerConfig,
    n_channels: int,
    *,
    masked: bool = False,
    links: bool = True,
) -> KeptLayer | None:
    whole = keep_all(index, layer)
    attention: KeptAttention | KeptLink | NewLink | None = whole.attention
    ffn: KeptFfn | KeptExperts | KeptLink | NewLink | None = whole.ffn
    if isinstance(layer.attention, AttentionConfig):
        heads = random_order(rng, random_units(rng, layer.attention.n_heads))
        read = tuple({layer.attention.q_to_kv[head]: None for head in heads})
        values = None
        if rng.random() < 0.5:
            values = random_order(rng, random_units(rng, layer.attention.value_dim))
        pairs = None
        count = part_count(layer.attention, "rotary_pairs")
        if not masked and count and rng.random() < 0.5:
            pairs = random_units(rng, count)
        attention = KeptAttention(heads, random_order(rng, read), values, pairs)
    if isinstance(layer.ffn, FfnConfig):
        ffn = KeptFfn(random_order(rng, random_units(rng, layer.ffn.n_neurons)))
    if isinstance(layer.ffn, RoutedFfnConfig):
        experts = random_order(rng, random_units(rng, len(layer.ffn.experts)))
        neurons = tuple(random_units(rng, layer.ffn.experts[expert]) for expert in experts)
        ffn = KeptExperts(experts, neurons)
    if rng.random() < 0.15:
        attention = None
    elif links and layer.attention is not None and rng.random() < 0.15:
        attention = NewLink(random_link(rng, n_channels))
    if rng.random() < 0.15:
        ffn = None
    elif links and layer.ffn is not None and rng.random() < 0.15:
        ffn = NewLink(random_link(rng, n_channels))
    kept = KeptLayer(index, attention, ffn)
    gone = attention is None and ffn is None and kept != whole
    return None if gone else kept


def random_link(rng: np.random.Generator, n_channels: int) -> LinkConfig:
    kinds: tuple[LinkKind, ...] = get_args(LinkKind)
    kind = kinds[int(rng.integers(len(kinds)))]
    return LinkConfig(kind, min(2, n_channels) if kind == "low_rank" else None)


def random_units(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    """At least one unit, sometimes all."""
    if rng.random() < 0.2:
        return tuple(range(count))
    size = int(rng.integers(1, count + 1))
    return tuple(sorted(int(unit) for unit in rng.choice(count, size, replace=False)))


def random_order(rng: np.random.Generator, units: tuple[int, ...]) -> tuple[int, ...]:
    """The same units, sometimes in another order."""
    return units if rng.random() < 0.5 else tuple(int(unit) for unit in rng.permutation(units))


def silenced(checkpoint: Checkpoint, channels: tuple[int, ...]) -> Checkpoint:
    """The whole model with nothing in any channel but these: what removing the others means."""
    gone = np.setdiff1d(np.arange(checkpoint.config.n_channels), channels)
    values = {}
    for name, tensor in checkpoint.tensors.items():
        array = np.array(tensor.read())
        for axis in channel_axes(name, array.ndim):
            # A norm's weight may count from the offset.
            nothing = -checkpoint.config.norm_offset if name.endswith("norm.weight") else 0.0
            np.moveaxis(array, axis, 0)[gone] = nothing
        values[name] = array
    return checkpoint.with_tensors(values)


IDLE = 2
"""The expert that no token of these models runs."""


def routed_model(layers: int = 4, experts: int = 6, neurons: int = 48) -> Checkpoint:
    """Channel 0 is the same in every token and layer; routers like ``IDLE`` the less for it."""
    attention = AttentionConfig(4, 2, 8, 8, (0, 0, 1, 1), 8**-0.5, RopeConfig(8))
    layer = LayerConfig(attention, RoutedFfnConfig((neurons,) * experts, min(2, experts)))
    config = ModelConfig("mixtral", 300, 32, 32, 1e-5, True, 512, (layer,) * layers)
    model = random_checkpoint(config, 5, tokenizer=True)
    embedding = model.read("embedding.weight").copy()
    embedding[:, 0] = 1.0
    changed = {"embedding.weight": embedding}
    for name in config.tensor_shapes():
        values = model.read(name).copy()
        if name.endswith(("o.weight", "down.weight")):
            values[0] = 0
        elif name.endswith("router.weight"):
            values[:, 0] = 0
            values[IDLE : IDLE + 1, 0] = -100.0
        else:
            continue
        changed[name] = values
    return model.with_tensors(changed)

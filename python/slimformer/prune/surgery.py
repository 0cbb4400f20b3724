"""Surgery: physically remove what a recipe does not keep, and nothing else.

Links that a recipe puts in the place of something are there afterwards, but do nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint, Tensor, TokenizerAssets
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, LinkConfig, RoutedFfnConfig
from slimformer.errors import RecipeError
from slimformer.prune.recipe import (
    KeptAttention,
    KeptExperts,
    KeptFfn,
    KeptLayer,
    NewLink,
    Recipe,
    keep_all,
)
from slimformer.prune.structures import (
    VOCABULARY_TENSORS,
    Axis,
    attention_axes,
    channel_axes,
    ffn_axes,
    kept_entries,
    pruned_layer,
)
from slimformer.prune.vocabulary.description import Description

Entries = npt.NDArray[np.intp]

_SINGLE = "layers.0.attention."


def apply(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint:
    """The model that keeps what ``recipe`` says.

    Pure and lazy: a tensor is read and cut when it is asked for. The empty recipe gives the
    same model back, and two recipes one after the other give what their composition gives.

    Raises
    ------
    RecipeError
        The recipe belongs to another model.
    """
    recipe.check(checkpoint)
    config = dataclasses.replace(
        checkpoint.config,
        layers=tuple(
            pruned_layer(checkpoint.config.layers[kept.source], kept) for kept in recipe.layers
        ),
    )
    tensors = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not name.startswith("layers.")
    }
    tokenizer = checkpoint.tokenizer
    if recipe.vocabulary is not None and len(recipe.vocabulary) < config.vocab_size:
        tokenizer = _cut_tokenizer(checkpoint, recipe.vocabulary)
        config = dataclasses.replace(config, vocab_size=len(recipe.vocabulary))
        for name in VOCABULARY_TENSORS & tensors.keys():
            rows = np.asarray(recipe.vocabulary)
            tensors[name] = _cut(tensors[name], 0, rows)
    for index, kept in enumerate(recipe.layers):
        for sub_block, cuts in _cuts(checkpoint, kept).items():
            places = _places(checkpoint.config.layers[kept.source], kept, sub_block)
            tensors.update(_sub_block(checkpoint, kept.source, index, sub_block, cuts, places))
        for sub_block, link in (("attention", kept.attention), ("ffn", kept.ffn)):
            if isinstance(link, NewLink):
                tensors.update(new_link(checkpoint, kept.source, index, sub_block, link.shape))
    if recipe.channels is not None:
        config = dataclasses.replace(config, n_channels=len(recipe.channels))
        channels = np.asarray(recipe.channels)
        tensors = {name: _narrow(name, tensor, channels) for name, tensor in tensors.items()}
    before = checkpoint.recipe
    structure = dataclasses.replace(recipe, zeros=None)
    composed = structure if before is None else Recipe.from_dict(before).then(structure)
    return dataclasses.replace(
        checkpoint,
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        recipe=composed.to_dict(),
    )


def with_pairs(checkpoint: Checkpoint, index: int, pairs: tuple[int, ...] | None) -> Checkpoint:
    """The model whose layer ``index`` has these rotary pairs alone; ``None``: all of them.

    Unlike units that a projection reads, pairs shape what others give: to see what is left of an
    attention without them it has to run without them.
    """
    layers = list(checkpoint.config.layers)
    whole = keep_all(index, layers[index])
    if pairs is None or not isinstance(whole.attention, KeptAttention):
        return checkpoint
    kept = dataclasses.replace(whole.attention, rotary_pairs=pairs)
    attention = layers[index].attention
    assert isinstance(attention, AttentionConfig)
    prefix = f"layers.{index}.attention."
    tensors = {
        prefix + part: _cut(checkpoint.tensors[prefix + part], axis.axis, entries)
        for part, (axis, entries) in _cuts_of_attention(attention, kept).items()
    }
    layers[index] = pruned_layer(layers[index], dataclasses.replace(whole, attention=kept))
    config = dataclasses.replace(checkpoint.config, layers=tuple(layers))
    return dataclasses.replace(checkpoint, config=config, tensors={**checkpoint.tensors, **tensors})


def unit_entries(
    units: tuple[int, ...], width: int, entries: tuple[int, ...] | None = None
) -> Entries:
    """Positions on an axis where each unit owns ``width`` neighbouring entries, or some of them."""
    own = np.arange(width) if entries is None else np.asarray(entries)
    positions: Entries = (np.asarray(units)[:, None] * width + own).reshape(-1)
    return positions


def kept_columns(layer: LayerConfig, kept: KeptLayer) -> dict[str, Entries]:
    """Columns that stay of the output-projection (``attention``) and down-projection (``ffn``).

    The down-projections of experts count as one, side by side.
    """
    columns = {}
    if isinstance(kept.attention, KeptAttention):
        assert isinstance(layer.attention, AttentionConfig)
        columns["attention"] = unit_entries(
            kept.attention.heads, layer.attention.value_dim, kept.attention.value_dims
        )
    if isinstance(kept.ffn, KeptFfn):
        columns["ffn"] = unit_entries(kept.ffn.neurons, 1)
    if isinstance(kept.ffn, KeptExperts):
        assert isinstance(layer.ffn, RoutedFfnConfig)
        starts = np.cumsum([0, *layer.ffn.experts])
        own = zip(kept.ffn.experts, kept.ffn.neurons, strict=True)
        columns["ffn"] = np.concatenate(
            [starts[expert] + unit_entries(neurons, 1) for expert, neurons in own]
        )
    return columns


def _cut_tokenizer(checkpoint: Checkpoint, rows: tuple[int, ...]) -> TokenizerAssets:
    """The tokenizer that counts from 0 the rows that stay."""
    if checkpoint.tokenizer is None:
        raise RecipeError(
            f"recipe: vocabulary: {checkpoint.name} has no tokenizer that could be rewritten"
        )
    return Description(checkpoint.tokenizer, checkpoint.config.vocab_size).cut(rows)


def _cuts(checkpoint: Checkpoint, kept: KeptLayer) -> dict[str, dict[str, tuple[Axis, Entries]]]:
    """For each sub-block that stays, the axis and the entries that stay of its cut tensors."""
    layer = checkpoint.config.layers[kept.source]
    cuts: dict[str, dict[str, tuple[Axis, Entries]]] = {}
    if kept.attention is not None and not isinstance(kept.attention, NewLink):
        cuts["attention"] = {}
        if isinstance(kept.attention, KeptAttention):
            assert isinstance(layer.attention, AttentionConfig)
            cuts["attention"] = _cuts_of_attention(layer.attention, kept.attention)
    if kept.ffn is not None and not isinstance(kept.ffn, NewLink):
        cuts["ffn"] = {}
        if isinstance(kept.ffn, KeptFfn):
            assert isinstance(layer.ffn, FfnConfig)
            for axis in ffn_axes(layer.ffn):
                cuts["ffn"][axis.part] = (axis, unit_entries(kept.ffn.neurons, axis.width))
        if isinstance(kept.ffn, KeptExperts):
            assert isinstance(layer.ffn, RoutedFfnConfig)
            cuts["ffn"] = _cuts_of_experts(layer.ffn, kept.ffn)
    return cuts


def _cuts_of_attention(
    attention: AttentionConfig, kept: KeptAttention
) -> dict[str, tuple[Axis, Entries]]:
    stays = {"heads": kept.heads, "kv_heads": kept.kv_heads}
    cuts = {}
    for axis in attention_axes(attention):
        own = kept_entries(attention, kept, axis.parts)
        cuts[axis.part] = (axis, unit_entries(stays[axis.unit], axis.width, own))
    return cuts


def _cuts_of_experts(ffn: RoutedFfnConfig, kept: KeptExperts) -> dict[str, tuple[Axis, Entries]]:
    neurons = dict(zip(kept.experts, kept.neurons, strict=True))
    cuts = {}
    for axis in ffn_axes(ffn):
        stays: tuple[int, ...] | None = kept.experts
        if axis.unit == "neurons":
            stays = neurons.get(int(axis.part.split(".")[1]))
        if stays is not None:
            cuts[axis.part] = (axis, unit_entries(stays, axis.width))
    return cuts


def _places(layer: LayerConfig, kept: KeptLayer, sub_block: str) -> dict[str, str | None]:
    """For experts by prefix, their prefix among those that stay; ``None`` for those that go."""
    if sub_block != "ffn" or not isinstance(layer.ffn, RoutedFfnConfig):
        return {}
    assert isinstance(kept.ffn, KeptExperts)
    places: dict[str, str | None] = {
        f"experts.{expert}": None for expert in range(len(layer.ffn.experts))
    }
    return places | {
        f"experts.{expert}": f"experts.{place}" for place, expert in enumerate(kept.ffn.experts)
    }


def _sub_block(
    checkpoint: Checkpoint,
    source: int,
    index: int,
    sub_block: str,
    cuts: dict[str, tuple[Axis, Entries]],
    places: dict[str, str | None],
) -> dict[str, Tensor]:
    """The tensors of one sub-block under their new names; for ``places`` see ``_places``."""
    prefix = f"layers.{source}.{sub_block}."
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        if name.startswith(prefix):
            part = name.removeprefix(prefix)
            if part in cuts:
                axis, entries = cuts[part]
                tensor = _cut(tensor, axis.axis, entries)
            owner = ".".join(part.split(".")[:2])
            place = places.get(owner, owner)
            if place is not None:
                new = place + part.removeprefix(owner)
                tensors[f"layers.{index}.{sub_block}.{new}"] = tensor
    return tensors


def new_link(
    checkpoint: Checkpoint, source: int, index: int, sub_block: str, link: LinkConfig
) -> dict[str, Tensor]:
    """The tensors of a link that does nothing yet, in place of a sub-block of layer ``source``.

    It reads what the sub-block's norm gives, or where there is none before it, the normalised
    stream. Names are those of layer ``index``.
    """
    config = dataclasses.replace(checkpoint.config, layers=(LayerConfig(link, None),))
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        if name.startswith(_SINGLE):
            part = name.removeprefix(_SINGLE)
            tensor = checkpoint.tensors.get(f"layers.{source}.{sub_block}.{part}")
            if tensor is None or part.startswith("link."):
                gain = 1.0 - config.norm_offset if part == "norm.weight" else 0.0
                dtype = DTYPES[checkpoint.tensors["embedding.weight"].dtype]
                tensor = _filled(shape, gain, dtype)
            tensors[f"layers.{index}.{sub_block}.{part}"] = tensor
    return tensors


def _filled(shape: tuple[int, ...], value: float, dtype: np.dtype[Any]) -> Tensor:
    names = {dtype: name for name, dtype in DTYPES.items()}
    return Tensor(shape, names[dtype], lambda: np.full(shape, value, dtype))


def _narrow(name: str, tensor: Tensor, channels: Entries) -> Tensor:
    """A tensor without the channels that go."""
    for axis in channel_axes(name, len(tensor.shape)):
        tensor = _cut(tensor, axis, channels)
    return tensor


def _cut(tensor: Tensor, axis: int, entries: Entries) -> Tensor:
    """The entries of one axis that stay, in their new order."""
    if np.array_equal(entries, np.arange(tensor.shape[axis])):
        return tensor
    shape = list(tensor.shape)
    shape[axis] = len(entries)
    return Tensor(tuple(shape), tensor.dtype, lambda: np.take(tensor.read(), entries, axis=axis))

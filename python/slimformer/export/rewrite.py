"""Models of any shape as equivalents that other engines can say, and what that costs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from slimformer.checkpoint import Checkpoint, Tensor
from slimformer.checkpoint.families import by_name
from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LinkConfig,
    ModelConfig,
    RopeConfig,
    RoutedFfnConfig,
)
from slimformer.config_settings import family_settings
from slimformer.errors import UnsupportedModelError
from slimformer.export.attention import (
    Groups,
    HeadWidth,
    even_groups,
    evened,
    is_plain,
    trained_groups,
    widest,
    zero_attention,
)
from slimformer.export.blocks import (
    Block,
    Change,
    Layer,
    blocks_of,
    gathered,
    layers_of,
    pack_layers,
    put_together,
    zero_block,
)
from slimformer.export.ffn import widened, widest_ffn
from slimformer.export.links import fold_constants, open_neurons, smallest_equivalent

_ANY_WIDTH = HeadWidth(2, RopeConfig(rotary_dim=2))
"""The width of heads that are all zeros, in a model that has no others."""

_ONE_HEAD = Groups(1, 1)

_NORM = re.compile(r"(^final_|\.)norm\.weight$")
"""Norms over the channels, not those of heads."""


def ragged_layers(checkpoint: Checkpoint) -> tuple[Checkpoint, list[Change]]:
    """An equivalent whose layers are what llama.cpp runs under the name ``deci``.

    Every layer has an FFN, since there a layer without neurons loses its attention, and the first
    has a head or a link, since with neither no head is taken to have a width. Links are full and
    stand in the place of attention, or are neurons; constants are biases. Heads come in even
    groups, of one width in the whole model.

    Raises
    ------
    UnsupportedModelError
        A sub-block has no such equivalent.
    """
    _check_sequential(checkpoint)
    _check_usual(checkpoint.config, checkpoint.name)
    checkpoint = _with_usual_norms(checkpoint)
    config = checkpoint.config
    blocks = blocks_of(layers_of(checkpoint))
    for block in blocks:
        if isinstance(block.shape, RoutedFfnConfig):
            raise UnsupportedModelError(
                f"{checkpoint.name}: {block.where}: experts have no equivalent in the shape that "
                "was asked for; keep as many experts in every layer and fill the rest up with "
                "--pad, or export it to huggingface"
            )
        if not isinstance(block.shape, LinkConfig):
            _check_usual(block.shape, f"{checkpoint.name}: {block.where}")
    attentions = _attentions(blocks)
    width = widest(attentions) or _ANY_WIDTH
    blocks, changes = fold_constants(config, blocks)
    written = []
    for block in blocks:
        if isinstance(block.shape, AttentionConfig):
            if not is_plain(block.shape, width):
                block, change = evened(config, block, even_groups([block.shape]), width)
                changes += change
        elif isinstance(block.shape, LinkConfig):
            block, change = smallest_equivalent(config, block)
            changes += change
        written.append(block)
    layers, change = _completed(config, pack_layers(written), width, heads=bool(attentions))
    return put_together(checkpoint, layers), changes + change


def with_plain_positions(checkpoint: Checkpoint) -> Checkpoint:
    """The same model with a table of positions that begins with that of the first token."""
    config = checkpoint.config
    if not config.position_offset:
        return checkpoint
    table = checkpoint.tensors["positions.weight"]
    rows = np.arange(config.position_offset, table.shape[0])
    tensors = {**checkpoint.tensors, "positions.weight": gathered(table, rows, 0)}
    config = dataclasses.replace(config, position_offset=0)
    return dataclasses.replace(checkpoint, config=config, tensors=tensors)


def _completed(
    config: ModelConfig, layers: list[Layer], width: HeadWidth, *, heads: bool
) -> tuple[list[Layer], list[Change]]:
    """The layers with a head and a neuron of zeros where llama.cpp cannot do without.

    ``heads`` says whether any layer has heads.
    """
    changes = []
    first, ffn = next(iter(layers), (None, None))
    if not heads or first is None:
        filler = zero_attention(config, _ONE_HEAD, width)
        changes.append(Change("the first layer", "given a head of zeros", filler.parameters))
        layers = [(filler, ffn), *layers[1:]] if first is None else [(filler, None), *layers]
    neuron = zero_block(config, FfnConfig(1))
    completed: list[Layer] = []
    for index, (attention, ffn) in enumerate(layers):
        if ffn is None:
            place = f"written layer {index}"
            changes.append(Change(place, "given a neuron of zeros", neuron.parameters))
        completed.append((attention, ffn or neuron))
    return completed, changes


def uniform_layers(checkpoint: Checkpoint) -> tuple[Checkpoint, list[Change]]:
    """An equivalent in which all layers have one shape: each is filled up to the widest.

    Raises
    ------
    UnsupportedModelError
        A sub-block has no such equivalent.
    """
    checkpoint = _with_usual_norms(checkpoint)
    config = checkpoint.config
    parallel = any(layer.parallel for layer in config.layers)
    changes: list[Change] = []
    if parallel:
        _check_parallel(checkpoint)
        opened = [layer for layer in layers_of(checkpoint) if any(layer)]
    else:
        opened, changes = _without_links(config, blocks_of(layers_of(checkpoint)))
    family = by_name(config.family, checkpoint.name)
    own, both = _biases(blocks_of(opened))
    for biases in (own, both):
        layers, change = _filled_up(config, opened, biases, checkpoint.name)
        uniform = put_together(checkpoint, layers, parallel=parallel)
        if family.to_huggingface(uniform.config) is not None:
            return uniform, changes + change
    raise UnsupportedModelError(
        f"{checkpoint.name}: filled up, its layers are none of a plain {family.huggingface_class}"
        f"{_still_differing(layers)}; export it without padding"
    )


def _without_links(
    config: ModelConfig, blocks: Sequence[Block]
) -> tuple[list[Layer], list[Change]]:
    """The fewest layers that run these sub-blocks, constants as biases, other links as neurons."""
    blocks, changes = fold_constants(config, blocks)
    opened = []
    for block in blocks:
        if isinstance(block.shape, LinkConfig):
            block, change = open_neurons(config, block)
            changes += change
        opened.append(block)
    return pack_layers(opened), changes


def _still_differing(layers: list[Layer]) -> str:
    """What filling up leaves different, for a message."""
    shapes = [attention.shape for attention, _ in layers if attention is not None]
    names = [field.name for field in dataclasses.fields(AttentionConfig)]
    differ = [name for name in names if len({getattr(shape, name) for shape in shapes}) > 1]
    return f": they still differ in {', '.join(differ)}" if differ else ""


_Biases = tuple[bool, bool]
"""Whether queries, keys and values have biases, and whether outputs do."""


def _biases(blocks: list[Block]) -> tuple[_Biases, _Biases]:
    """Those that any attention has, and all if it has any: some families have one switch."""
    attentions = _attentions(blocks)
    own = any(a.qkv_bias for a in attentions), any(a.output_bias for a in attentions)
    return own, (any(own), any(own))


def _filled_up(
    config: ModelConfig, given: list[Layer], biases: _Biases, name: str
) -> tuple[list[Layer], list[Change]]:
    blocks = blocks_of(given)
    attentions = _attentions(blocks)
    ffns = [block.shape for block in blocks if isinstance(block.shape, FfnConfig | RoutedFfnConfig)]
    width = widest(attentions, own_rotation=True) or _ANY_WIDTH
    groups = _ONE_HEAD
    if attentions:
        groups = trained_groups(attentions) or even_groups(attentions, divides=config.n_channels)
    qkv_bias, output_bias = biases
    ffn_shape = widest_ffn(ffns, name)
    layers: list[Layer] = []
    changes: list[Change] = []
    for index, (attention, ffn) in enumerate(given or [(None, None)]):
        place = f"written layer {index}"
        attention, change = evened(
            config,
            attention or zero_attention(config, groups, width, attentions),
            groups,
            width,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
        )
        if attention.where:
            changes += change
        else:
            changes.append(Change(place, "given an attention of zeros", attention.parameters))
        if ffn is None:
            ffn = zero_block(config, ffn_shape)
            changes.append(Change(place, "given an FFN of zeros", ffn.parameters))
        else:
            ffn, change = widened(config, ffn, ffn_shape)
            changes += change
        layers.append((attention, ffn))
    return layers, changes


def _check_sequential(checkpoint: Checkpoint) -> None:
    """Refuse layers that are more than one sub-block after the other."""
    for index, layer in enumerate(checkpoint.config.layers):
        _check_usual(layer, f"{checkpoint.name}: layer {index}")


def _check_parallel(checkpoint: Checkpoint) -> None:
    """Refuse what cannot be filled up where the sub-blocks of a layer belong together."""
    layers = checkpoint.config.layers
    for index, layer in enumerate(layers):
        linked = any(isinstance(part, LinkConfig) for part in (layer.attention, layer.ffn))
        if linked or not layer.parallel:
            raise UnsupportedModelError(
                f"{checkpoint.name}: layer {index}: {'a link' if linked else 'an order'} has no "
                "equivalent beside parallel sub-blocks; export it ragged, to huggingface"
            )


def _check_usual(shape: Any, where: str) -> None:
    for what in family_settings(shape):
        raise UnsupportedModelError(
            f"{where}: {what} has no equivalent in the shape that was asked for; fill the layers "
            "up with --pad, or export it to huggingface"
        )


def _attentions(blocks: list[Block]) -> list[AttentionConfig]:
    return [block.shape for block in blocks if isinstance(block.shape, AttentionConfig)]


def _with_usual_norms(checkpoint: Checkpoint) -> Checkpoint:
    """The same model with norms that divide by the number of channels that there are.

    x / sqrt(sum / N + eps) is sqrt(N / n) * x / sqrt(sum / n + eps * N / n), and the factor goes
    into the norm's weight.
    """
    config = checkpoint.config
    ratio = config.norm_divisor / config.n_channels
    if ratio == 1:
        return checkpoint
    if family_settings(config):
        raise UnsupportedModelError(
            f"{checkpoint.name}: norms that divide by {config.norm_divisor}, and not by the "
            f"{config.n_channels} channels that there are, have no equivalent in this family"
        )
    tensors = {
        name: _scaled(tensor, math.sqrt(ratio)) if _NORM.search(name) else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    config = dataclasses.replace(
        config, norm_divisor=config.n_channels, norm_eps=config.norm_eps * ratio
    )
    return dataclasses.replace(checkpoint, config=config, tensors=tensors)


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    return gathered(tensor, np.arange(tensor.shape[0]), 0, factor)

"""Which axes of which tensors move together when a structure goes.

A query head is rows of ``q`` and columns of ``o``; a KV head is rows of ``k`` and ``v``; an entry
of the values is a row of each KV head of ``v`` and a column of each query head of ``o``; a rotary
pair is two rows of each head of ``q`` and of each KV head of ``k``; a neuron is a row of ``gate``
(if there is one) and of ``up`` and a column of ``down``; an expert is a row of ``router`` and all
its neurons. Biases follow the rows, and so do the weights of norms over the whole width of queries
or keys.
Whole sub-blocks and layers own all tensors below their prefix. A token is a row of the embedding
and of the head, which are one where it is tied. A channel of the residual stream is a column of
all that reads it, a row of all that writes to it, and an entry of the norms between.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    ModelConfig,
    RoutedFfnConfig,
)
from slimformer.errors import ConfigError
from slimformer.prune.recipe import (
    HEAD_PARTS,
    HeadPart,
    KeptAttention,
    KeptExperts,
    KeptFfn,
    KeptLayer,
    NewLink,
    part_count,
)

Structure = Literal[
    "layers",
    "attention",
    "ffn",
    "kv_groups",
    "heads",
    "value_dims",
    "rotary_pairs",
    "experts",
    "neurons",
]
STRUCTURES: tuple[Structure, ...] = get_args(Structure)

UnitAxis = Literal["heads", "kv_heads", "experts", "neurons"]

VOCABULARY_TENSORS = frozenset(("embedding.weight", "head.weight"))
"""Tensors with a row for each token."""

READERS = frozenset(
    (*(f"{part}.weight" for part in ("q", "k", "v", "gate", "up", "router")), "link.down")
)
"""Matrices of a sub-block or expert that read the stream, with a column for each channel."""

WRITERS = frozenset(
    (
        *(f"{part}.{kind}" for part in ("o", "down") for kind in ("weight", "bias")),
        *("link.up", "link.bias"),
    )
)
"""Matrices and biases of a sub-block or expert that write to the stream, a row each channel."""

_EXPERT = re.compile(r"^experts\.\d+\.")

Rate = Callable[[str], int]
"""What one element of a tensor counts: 1 for a budget of parameters, its bytes for one of bytes."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis that a unit owns a stretch of: ``width`` entries of ``axis``, unit by unit.

    ``parts`` says what the entries in a stretch belong to, if some of them may go.
    """

    part: str  # name below the sub-block's prefix, e.g. "q.weight"
    axis: int
    width: int
    unit: UnitAxis
    parts: HeadPart | None = None


def channel_axes(name: str, dimensions: int) -> tuple[int, ...]:
    """Axes of a tensor that have an entry for each channel of the residual stream."""
    part = name
    if name.startswith("layers."):
        part = _EXPERT.sub("", name.split(".", 3)[3])
    elif not part.endswith("_norm.weight"):
        return (1,)
    if part in READERS:
        return (1,)
    if part in WRITERS:
        return (0,)
    if part in ("norm.weight", "post_norm.weight", "embedding_norm.weight", "final_norm.weight"):
        return (0,)
    return tuple(range(dimensions)) if part == "link.weight" else ()


def attention_axes(attention: AttentionConfig) -> tuple[Axis, ...]:
    """Axes that heads and KV heads own, and what heads consist of a part of each stretch."""
    keys, values = attention.head_dim, attention.value_dim
    axes = [
        Axis("q.weight", 0, keys, "heads", "rotary_pairs"),
        Axis("k.weight", 0, keys, "kv_heads", "rotary_pairs"),
        Axis("v.weight", 0, values, "kv_heads", "value_dims"),
        Axis("o.weight", 1, values, "heads", "value_dims"),
    ]
    if attention.qkv_bias:
        axes += [
            Axis("q.bias", 0, keys, "heads", "rotary_pairs"),
            Axis("k.bias", 0, keys, "kv_heads", "rotary_pairs"),
            Axis("v.bias", 0, values, "kv_heads", "value_dims"),
        ]
    if attention.qk_norm == "width":
        axes += [
            Axis("q_norm.weight", 0, keys, "heads", "rotary_pairs"),
            Axis("k_norm.weight", 0, keys, "kv_heads", "rotary_pairs"),
        ]
    return tuple(axes)


def part_entries(attention: AttentionConfig, part: HeadPart) -> npt.NDArray[np.intp]:
    """Where in a head the parts are of which some may go, [parts, entries of each]."""
    count = part_count(attention, part)
    if part == "value_dims":
        return np.arange(count)[:, None]
    return np.arange(2 * count).reshape(2, count).T


def kept_entries(
    attention: AttentionConfig, kept: KeptAttention, part: HeadPart | None
) -> tuple[int, ...] | None:
    """Entries of a stretch that stay; ``None``: all of them."""
    units = None if part is None else kept.parts.get(part)
    if part is None or units is None:
        return None
    entries = part_entries(attention, part)
    width = attention.value_dim if part == "value_dims" else attention.head_dim
    others = np.arange(entries.size, width)  # those that do not rotate
    return tuple(np.concatenate([entries[list(units)].T.reshape(-1), others]).tolist())


def ffn_axes(ffn: FfnConfig | RoutedFfnConfig) -> tuple[Axis, ...]:
    """Axes that neurons own, those of each expert by themselves, and experts."""
    if isinstance(ffn, RoutedFfnConfig):
        return (Axis("router.weight", 0, 1, "experts"), *_axes_of_experts(ffn))
    rows = ("weight", "bias") if ffn.bias else ("weight",)
    axes = [Axis(f"{part}.{name}", 0, 1, "neurons") for part in ffn.neuron_parts for name in rows]
    return (*axes, Axis("down.weight", 1, 1, "neurons"))


def _axes_of_experts(ffn: RoutedFfnConfig) -> Iterator[Axis]:
    for index in range(len(ffn.experts)):
        for axis in ffn_axes(ffn.expert(index)):
            yield dataclasses.replace(axis, part=f"experts.{index}.{axis.part}")


def pruned_attention(attention: AttentionConfig, kept: KeptAttention) -> AttentionConfig:
    """The shape of what stays; ``q_to_kv`` counts the KV heads that stay."""
    position = {kv: i for i, kv in enumerate(kept.kv_heads)}
    rope, head_dim = attention.rope, attention.head_dim
    if rope is not None and kept.rotary_pairs is not None:
        head_dim -= rope.rotary_dim - 2 * len(kept.rotary_pairs)
        rope = rope.only(kept.rotary_pairs)
    return dataclasses.replace(
        attention,
        n_heads=len(kept.heads),
        n_kv_heads=len(kept.kv_heads),
        head_dim=head_dim,
        rope=rope,
        value_dim=attention.value_dim if kept.value_dims is None else len(kept.value_dims),
        q_to_kv=tuple(position[attention.q_to_kv[head]] for head in kept.heads),
    )


def pruned_experts(ffn: RoutedFfnConfig, kept: KeptExperts) -> RoutedFfnConfig:
    """The shape of what stays; with fewer experts than a token runs it runs all."""
    experts = tuple(map(len, kept.neurons))
    return dataclasses.replace(ffn, experts=experts, top_k=min(ffn.top_k, len(experts)))


def pruned_layer(layer: LayerConfig, kept: KeptLayer) -> LayerConfig:
    """The shape of what stays of a layer."""
    attention = layer.attention if kept.attention is not None else None
    if isinstance(kept.attention, KeptAttention):
        assert isinstance(layer.attention, AttentionConfig)
        attention = pruned_attention(layer.attention, kept.attention)
    elif isinstance(kept.attention, NewLink):
        attention = kept.attention.shape
    ffn = layer.ffn if kept.ffn is not None else None
    if isinstance(kept.ffn, KeptFfn):
        assert isinstance(layer.ffn, FfnConfig)
        ffn = dataclasses.replace(layer.ffn, n_neurons=len(kept.ffn.neurons))
    elif isinstance(kept.ffn, NewLink):
        ffn = kept.ffn.shape
    if isinstance(kept.ffn, KeptExperts):
        assert isinstance(layer.ffn, RoutedFfnConfig)
        ffn = pruned_experts(layer.ffn, kept.ffn)
    return dataclasses.replace(layer, attention=attention, ffn=ffn)


class Price(Protocol):
    """What one layer weighs, depending on what it keeps."""

    @property
    def neuron(self) -> float:
        """What a neuron weighs, in the mean."""

    def of(
        self,
        heads: int,
        kv_heads: int,
        neurons: int,
        *,
        attention: bool,
        ffn: bool,
        experts: int = 0,
        values_gone: int = 0,
        pairs_gone: int = 0,
    ) -> int:
        """Weight of a layer with that many units and those sub-blocks.

        ``values_gone`` is how many entries each value head has lost, ``pairs_gone`` how many
        rotary pairs each query and key head.
        """


@dataclasses.dataclass(frozen=True)
class LayerPrice:
    """What the parts of one layer weigh, in parameters or bytes.

    ``attention`` and ``ffn`` are what a sub-block weighs apart from its units: norm, output
    bias, or all of a link. The others are the weight of one unit;
    of an expert it is what its neurons leave, its row of the router. ``head_value`` and
    ``kv_value`` are what an entry of the values is of each head and of each KV head, ``head_pair``
    and ``kv_pair`` what a rotary pair is.
    """

    attention: int
    head: int
    kv_head: int
    ffn: int
    neuron: int
    expert: int = 0
    head_value: int = 0
    kv_value: int = 0
    head_pair: int = 0
    kv_pair: int = 0

    def of(
        self,
        heads: int,
        kv_heads: int,
        neurons: int,
        *,
        attention: bool,
        ffn: bool,
        experts: int = 0,
        values_gone: int = 0,
        pairs_gone: int = 0,
    ) -> int:
        """See Price."""
        total = 0
        if attention:
            head = self.head - values_gone * self.head_value - pairs_gone * self.head_pair
            kv_head = self.kv_head - values_gone * self.kv_value - pairs_gone * self.kv_pair
            total += self.attention + heads * head + kv_heads * kv_head
        units = neurons * self.neuron + experts * self.expert
        return total + (self.ffn + units if ffn else 0)


def layer_price(config: ModelConfig, index: int, rate: Rate) -> LayerPrice:
    """Weigh the parts of one layer of a model."""
    layer = config.layers[index]
    axes: tuple[Axis, ...] = ()
    if isinstance(layer.attention, AttentionConfig):
        axes += attention_axes(layer.attention)
    if isinstance(layer.ffn, (FfnConfig, RoutedFfnConfig)):
        axes += ffn_axes(layer.ffn)
    unit_of = {axis.part: axis for axis in axes}
    weight = dict.fromkeys(("attention", "ffn", *get_args(UnitAxis)), 0)
    units = _unit_counts(layer)
    parts = dict.fromkeys(itertools.product(("heads", "kv_heads"), HEAD_PARTS), 0)
    prefix = f"layers.{index}."
    for name, shape in config.tensor_shapes().items():
        if not name.startswith(prefix):
            continue
        sub_block, part = name.removeprefix(prefix).split(".", 1)
        axis = unit_of.get(part)
        if axis is None:
            weight[sub_block] += math.prod(shape) * rate(name)
        else:
            weight[axis.unit] += math.prod(shape) * rate(name)
            if axis.parts is not None:
                entry = math.prod(shape) // (units[axis.unit] * axis.width) * rate(name)
                parts[axis.unit, axis.parts] += entry * (2 if axis.parts == "rotary_pairs" else 1)
    one = {unit: weight[unit] // count for unit, count in units.items()}
    return LayerPrice(
        attention=weight["attention"],
        head=one.get("heads", 0),
        kv_head=one.get("kv_heads", 0),
        ffn=weight["ffn"],
        neuron=one.get("neurons", 0),
        expert=one.get("experts", 0),
        head_value=parts["heads", "value_dims"],
        kv_value=parts["kv_heads", "value_dims"],
        head_pair=parts["heads", "rotary_pairs"],
        kv_pair=parts["kv_heads", "rotary_pairs"],
    )


def _unit_counts(layer: LayerConfig) -> dict[str, int]:
    """How many units of each kind a layer has."""
    counts: dict[str, int] = {}
    if isinstance(layer.attention, AttentionConfig):
        counts |= {"heads": layer.attention.n_heads, "kv_heads": layer.attention.n_kv_heads}
    if isinstance(layer.ffn, (FfnConfig, RoutedFfnConfig)):
        counts["neurons"] = layer.ffn.n_neurons
    if isinstance(layer.ffn, RoutedFfnConfig):
        counts["experts"] = len(layer.ffn.experts)
    return counts


def parameters_price(config: ModelConfig, index: int) -> LayerPrice:
    """Count the parameters of the parts of one layer of a model."""
    return layer_price(config, index, lambda name: 1)


def check_structures(structures: tuple[str, ...], config: ModelConfig) -> tuple[Structure, ...]:
    """The structures by name, without repetitions, in the order of ``STRUCTURES``.

    Raises
    ------
    ConfigError
        Unknown ones, none, or rotary pairs of a model that has none that may go.
    """
    unknown = sorted(set(structures) - set(STRUCTURES))
    if unknown or not structures:
        raise ConfigError(
            f"structures: expected some of {', '.join(STRUCTURES)}, found "
            f"{', '.join(unknown) or 'none'}"
        )
    if "rotary_pairs" in structures:
        check_rotary_pairs(config)
    return tuple(structure for structure in STRUCTURES if structure in structures)


def check_rotary_pairs(config: ModelConfig) -> None:
    """Raise ConfigError unless some layer has rotary pairs that may go."""
    attentions = [a for layer in config.layers if isinstance(a := layer.attention, AttentionConfig)]
    if not any(part_count(attention, "rotary_pairs") for attention in attentions):
        rotates = any(attention.rope is not None for attention in attentions)
        why = "norms of single heads count all entries" if rotates else "no layer rotates"
        raise ConfigError(
            f"rotary_pairs: none may go from this {config.family} model: {why}; choose other "
            "structures, such as heads"
        )

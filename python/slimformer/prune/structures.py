"""Which axes of which tensors move together when a structure goes.

A query head is rows of ``q`` and columns of ``o``; a KV head is rows of ``k`` and ``v``; an entry
of the values is a row of each KV head of ``v`` and a column of each query head of ``o``; a neuron
is a row of ``gate`` (if there is one) and of ``up`` and a column of ``down``; an expert is a row of
``router`` and all its neurons. Biases follow the rows, and so do the weights of norms over the
whole width of queries or keys.
Whole sub-blocks and layers own all tensors below their prefix. A token is a row of the embedding
and of the head, which are one where it is tied. A channel of the residual stream is a column of
all that reads it, a row of all that writes to it, and an entry of the norms between.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Literal, Protocol, get_args

from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    ModelConfig,
    RoutedFfnConfig,
)
from slimformer.errors import ConfigError
from slimformer.prune.recipe import KeptAttention, KeptExperts, KeptFfn, KeptLayer, NewLink

Structure = Literal[
    "layers", "attention", "ffn", "kv_groups", "heads", "value_dims", "experts", "neurons"
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

    ``of_values`` says that the entries in a stretch are those of a value.
    """

    part: str  # name below the sub-block's prefix, e.g. "q.weight"
    axis: int
    width: int
    unit: UnitAxis
    of_values: bool = False


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
    """Axes that heads and KV heads own, and entries of the values a part of each stretch."""
    axes = [
        Axis("q.weight", 0, attention.head_dim, "heads"),
        Axis("k.weight", 0, attention.head_dim, "kv_heads"),
        Axis("v.weight", 0, attention.value_dim, "kv_heads", of_values=True),
        Axis("o.weight", 1, attention.value_dim, "heads", of_values=True),
    ]
    if attention.qkv_bias:
        axes += [
            Axis("q.bias", 0, attention.head_dim, "heads"),
            Axis("k.bias", 0, attention.head_dim, "kv_heads"),
            Axis("v.bias", 0, attention.value_dim, "kv_heads", of_values=True),
        ]
    if attention.qk_norm == "width":
        axes += [
            Axis("q_norm.weight", 0, attention.head_dim, "heads"),
            Axis("k_norm.weight", 0, attention.head_dim, "kv_heads"),
        ]
    return tuple(axes)


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
    return dataclasses.replace(
        attention,
        n_heads=len(kept.heads),
        n_kv_heads=len(kept.kv_heads),
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
    ) -> int:
        """Weight of a layer with that many units and those sub-blocks.

        ``values_gone`` is how many entries each value head has lost.
        """


@dataclasses.dataclass(frozen=True)
class LayerPrice:
    """What the parts of one layer weigh, in parameters or bytes.

    ``attention`` and ``ffn`` are what a sub-block weighs apart from its units: norm, output
    bias, or all of a link. The others are the weight of one unit;
    of an expert it is what its neurons leave, its row of the router. ``head_value`` and
    ``kv_value`` are what an entry of the values is of each head and of each KV head.
    """

    attention: int
    head: int
    kv_head: int
    ffn: int
    neuron: int
    expert: int = 0
    head_value: int = 0
    kv_value: int = 0

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
    ) -> int:
        """See Price."""
        total = 0
        if attention:
            total += self.attention + heads * (self.head - values_gone * self.head_value)
            total += kv_heads * (self.kv_head - values_gone * self.kv_value)
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
    of_values = {"heads": 0, "kv_heads": 0}
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
            if axis.of_values:
                entries = units[axis.unit] * axis.width
                of_values[axis.unit] += math.prod(shape) // entries * rate(name)
    one = {unit: weight[unit] // count for unit, count in units.items()}
    return LayerPrice(
        attention=weight["attention"],
        head=one.get("heads", 0),
        kv_head=one.get("kv_heads", 0),
        ffn=weight["ffn"],
        neuron=one.get("neurons", 0),
        expert=one.get("experts", 0),
        head_value=of_values["heads"],
        kv_value=of_values["kv_heads"],
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


def check_structures(structures: tuple[str, ...]) -> tuple[Structure, ...]:
    """The structures by name, without repetitions, in the order of ``STRUCTURES``."""
    unknown = sorted(set(structures) - set(STRUCTURES))
    if unknown or not structures:
        raise ConfigError(
            f"structures: expected some of {', '.join(STRUCTURES)}, found "
            f"{', '.join(unknown) or 'none'}"
        )
    return tuple(structure for structure in STRUCTURES if structure in structures)

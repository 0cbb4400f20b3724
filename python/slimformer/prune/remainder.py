"""What is left of a model while units are removed, and what that weighs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slimformer.config import AttentionConfig, FfnConfig, ModelConfig, RoutedFfnConfig
from slimformer.prune.budget import Budget
from slimformer.prune.expert_neurons import ExpertNeurons
from slimformer.prune.importance.scores import Scores
from slimformer.prune.recipe import (
    HEAD_PARTS,
    HeadPart,
    KeptAttention,
    KeptExperts,
    KeptFfn,
    KeptLayer,
    keep_all,
    keep_heads,
    part_count,
)
from slimformer.prune.structures import Structure

Counted = HeadPart | Literal["neurons"]
"""Units of which only the number that is left counts: the cheapest go first."""


@dataclasses.dataclass(frozen=True)
class Left:
    """What is left of one layer.

    ``heads`` and, as numbers of which the cheapest go first, ``value_dims``, ``rotary_pairs`` and
    ``neurons`` are ``None`` where the sub-block is absent or a link, pairs also where none may go,
    and ``experts`` where it is no routed FFN. There ``neurons`` counts those of all experts, of
    which only those of experts that are left are there.
    """

    attention: bool
    ffn: bool
    heads: frozenset[int] | None
    neurons: int | None
    experts: frozenset[int] | None = None
    value_dims: int | None = None
    rotary_pairs: int | None = None

    def part(self, part: HeadPart) -> int | None:
        """How many of what heads consist of are left."""
        return self.value_dims if part == "value_dims" else self.rotary_pairs


@dataclasses.dataclass(frozen=True)
class Move:
    """One removal in one layer.

    ``apply`` gives what is left after it, ``None`` where it changes nothing or would leave a
    sub-block without units. ``ratio`` is its cost for each unit of weight that it saves.
    """

    layer: int
    ratio: float
    apply: Callable[[Left], Left | None]


class Remainder:
    """The model while units go: what is left of each layer, and the weight of it all."""

    def __init__(self, config: ModelConfig, scores: Scores, budget: Budget) -> None:
        self.config = config
        self.scores = scores
        indices = range(len(config.layers))
        self._expert_neurons = {
            index: ExpertNeurons(layer.ffn, scores[index].neurons)
            for index, layer in enumerate(config.layers)
            if isinstance(layer.ffn, RoutedFfnConfig)
        }
        self.prices = tuple(budget.price(config, index) for index in indices)
        self.layers = [whole(config, index) for index in indices]
        self.weight = budget.fixed + sum(
            self.layer_weight(index, left) for index, left in enumerate(self.layers)
        )

    def layer_weight(self, index: int, left: Left) -> int:
        """Weight of one layer if that is left of it."""
        attention = self.config.layers[index].attention
        kv_heads = 0
        gone = dict.fromkeys(HEAD_PARTS, 0)
        if left.heads is not None and isinstance(attention, AttentionConfig):
            kv_heads = len({attention.q_to_kv[head] for head in left.heads})
            for part in HEAD_PARTS:
                gone[part] = part_count(attention, part) - (left.part(part) or 0)
        neurons = left.neurons or 0
        if left.experts is not None:
            neurons = self._expert_neurons[index].count(left.experts, neurons)
        return self.prices[index].of(
            len(left.heads or ()),
            kv_heads,
            neurons,
            attention=left.attention,
            ffn=left.ffn,
            experts=len(left.experts or ()),
            values_gone=gone["value_dims"],
            pairs_gone=gone["rotary_pairs"],
        )

    def saving(self, index: int, left: Left) -> int:
        """Weight that goes when one layer becomes ``left``."""
        return self.layer_weight(index, self.layers[index]) - self.layer_weight(index, left)

    def replace(self, index: int, left: Left) -> None:
        """Let one layer become ``left``."""
        self.weight -= self.saving(index, left)
        self.layers[index] = left

    def kept(self) -> tuple[KeptLayer, ...]:
        """What is left, as the layers of a recipe."""
        layers = []
        for index, left in enumerate(self.layers):
            layer, rated = self.config.layers[index], self.scores[index]
            all_of_it = keep_all(index, layer)
            attention = all_of_it.attention if left.attention else None
            if left.heads is not None and isinstance(layer.attention, AttentionConfig):
                attention = keep_heads(layer.attention, tuple(sorted(left.heads)))
                for part in HEAD_PARTS:
                    count = left.part(part) or 0
                    if count != part_count(layer.attention, part):
                        assert isinstance(attention, KeptAttention)
                        units: dict[str, Any] = {part: dearest_units(rated.part(part), count)}
                        attention = dataclasses.replace(attention, **units)
            ffn = all_of_it.ffn if left.ffn else None
            start = whole(self.config, index).neurons
            if left.experts is not None:
                experts = tuple(sorted(left.experts))
                neurons = self._expert_neurons[index].left(experts, left.neurons or 0)
                ffn = KeptExperts(experts, neurons)
            elif left.neurons is not None and left.neurons != start:
                ffn = KeptFfn(dearest_units(self.scores[index].neurons, left.neurons))
            kept = KeptLayer(index, attention, ffn)
            if kept == all_of_it or attention is not None or ffn is not None:
                layers.append(kept)
        return tuple(layers)


def whole(config: ModelConfig, index: int) -> Left:
    """All of one layer."""
    layer = config.layers[index]
    attention, ffn = layer.attention, layer.ffn
    parts = {}
    if isinstance(attention, AttentionConfig):
        parts = {part: part_count(attention, part) or None for part in HEAD_PARTS}
    return Left(
        attention is not None,
        ffn is not None,
        frozenset(range(attention.n_heads)) if isinstance(attention, AttentionConfig) else None,
        ffn.n_neurons if isinstance(ffn, (FfnConfig, RoutedFfnConfig)) else None,
        frozenset(range(len(ffn.experts))) if isinstance(ffn, RoutedFfnConfig) else None,
        **parts,
    )


def dearest_units(scores: npt.NDArray[np.float64] | None, count: int) -> tuple[int, ...]:
    """The ``count`` units of highest score, ascending; ties keep the later index."""
    assert scores is not None
    order = np.argsort(scores, kind="stable")
    return tuple(sorted(int(unit) for unit in order[len(order) - count :]))


def layer_moves(
    remainder: Remainder, index: int, structures: tuple[Structure, ...], granule: int
) -> list[Move]:
    """Every single removal that the structures allow in one layer."""
    rated, price = remainder.scores[index], remainder.prices[index]
    start = whole(remainder.config, index)
    moves: list[Move] = []

    def add(cost: float, apply: Callable[[Left], Left | None]) -> None:
        left = apply(start)
        if left is not None:
            saving = remainder.layer_weight(index, start) - remainder.layer_weight(index, left)
            moves.append(Move(index, cost / max(1, saving), apply))

    if "layers" in structures and rated.layers is not None:
        add(rated.layers, _drop_layer)
    if "attention" in structures and rated.attention is not None:
        add(rated.attention, _drop_attention)
    if "ffn" in structures and rated.ffn is not None:
        add(rated.ffn, _drop_ffn)
    attention = remainder.config.layers[index].attention
    if "kv_groups" in structures and rated.kv_groups is not None:
        assert isinstance(attention, AttentionConfig)
        for group, cost in enumerate(rated.kv_groups):
            members = {head for head, kv in enumerate(attention.q_to_kv) if kv == group}
            add(float(cost), _drop_heads(frozenset(members)))
    if "heads" in structures and rated.heads is not None:
        for head, cost in enumerate(rated.heads):
            add(float(cost), _drop_heads(frozenset((head,))))
    if "experts" in structures and rated.experts is not None:
        for expert, cost in enumerate(rated.experts):
            add(float(cost), _drop_expert(expert))
    if "neurons" in structures and rated.neurons is not None:
        moves.extend(_counted_moves(index, rated.neurons, price.neuron, granule, "neurons"))
    for part in HEAD_PARTS:
        costs = rated.part(part)
        if part in structures and costs is not None and start.part(part) is not None:
            fewer = _drop(part, 1)(start)
            saving = 0 if fewer is None else remainder.saving(index, fewer)
            step = part_granule(part, granule)
            moves.extend(_counted_moves(index, costs, saving, step, part))
    return moves


def part_granule(part: HeadPart, granule: int) -> int:
    """How many go together where of what has one entry each ``granule`` do."""
    return max(1, granule // 2) if part == "rotary_pairs" else granule


def _counted_moves(
    index: int,
    scores: npt.NDArray[np.float64],
    weight: float,
    granule: int,
    counted: Counted,
) -> list[Move]:
    """Units in ascending order of cost, in granules that leave multiples of ``granule``.

    ``weight`` is that of one unit.
    """
    ascending = np.sort(scores)
    moves = []
    start = 0
    while start < len(ascending):
        end = start + ((len(ascending) - start) % granule or granule)
        ratio = float(ascending[start:end].mean()) / max(1.0, weight)
        moves.append(Move(index, ratio, _drop(counted, end - start)))
        start = end
    return moves


def _drop_layer(left: Left) -> Left | None:
    return Left(False, False, None, None) if left.attention or left.ffn else None


def _drop_attention(left: Left) -> Left | None:
    if not left.attention:
        return None
    return Left(False, left.ffn, None, left.neurons, left.experts)


def _drop_ffn(left: Left) -> Left | None:
    return dataclasses.replace(left, ffn=False, neurons=None, experts=None) if left.ffn else None


def _drop_heads(heads: frozenset[int]) -> Callable[[Left], Left | None]:
    def apply(left: Left) -> Left | None:
        if left.heads is None or not left.heads & heads or not left.heads - heads:
            return None
        return dataclasses.replace(left, heads=left.heads - heads)

    return apply


def _drop_expert(expert: int) -> Callable[[Left], Left | None]:
    def apply(left: Left) -> Left | None:
        if left.experts is None or expert not in left.experts or len(left.experts) == 1:
            return None
        return dataclasses.replace(left, experts=left.experts - {expert})

    return apply


def _drop(counted: Counted, count: int) -> Callable[[Left], Left | None]:
    def apply(left: Left) -> Left | None:
        there = left.neurons if counted == "neurons" else left.part(counted)
        if there is None or there <= count:
            return None
        fewer: dict[str, Any] = {counted: there - count}
        return dataclasses.replace(left, **fewer)

    return apply

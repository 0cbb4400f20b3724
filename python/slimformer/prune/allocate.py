"""Allocation: which units go so that a budget is met.

Units go in the order of cost for each unit of weight saved. ``global`` takes them wherever in
the model they are cheapest; ``uniform`` takes the same share of every layer. Layers and
sub-blocks cannot be shared out, so they are ranked over the whole model either way.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from slimformer.config import AttentionConfig, FfnConfig, ModelConfig, RoutedFfnConfig
from slimformer.errors import BudgetError, ConfigError
from slimformer.prune.budget import Budget
from slimformer.prune.importance.scores import Scores
from slimformer.prune.recipe import HEAD_PARTS, KeptLayer, part_count
from slimformer.prune.remainder import Left, Move, Remainder, layer_moves, part_granule, whole
from slimformer.prune.structures import Structure

Allocation = Literal["global", "uniform"]

PANEL = 16
"""Kernels read weights in panels of 16 outputs: widths that are multiples leave none half full."""

GRANULE_SHARE = 0.0025
"""Largest share of the weight that rounding one width may cost."""

UNIT_STRUCTURES = ("kv_groups", "heads", *HEAD_PARTS, "experts", "neurons")


def allocate(
    config: ModelConfig,
    scores: Scores,
    budget: Budget,
    *,
    structures: tuple[Structure, ...],
    allocation: Allocation,
    protect: frozenset[int],
) -> tuple[KeptLayer, ...]:
    """Choose what stays: at most ``budget.limit``, as close to it as the units allow.

    Parameters
    ----------
    scores
        Cost of each unit of the structures; see ``LayerScores``.
    protect
        Layers that stay whole.

    Raises
    ------
    BudgetError
        Removing all that may go is not enough.
    ConfigError
        ``uniform`` with layers or sub-blocks beside smaller units.
    """
    remainder = Remainder(config, scores, budget)
    full_weight = remainder.weight
    granule = _granule(remainder)
    free = [index for index in range(len(config.layers)) if index not in protect]
    units = [structure for structure in structures if structure in UNIT_STRUCTURES]
    if allocation == "uniform" and units:
        if len(units) < len(structures):
            raise ConfigError(
                "allocation uniform: layers and sub-blocks cannot be shared out evenly; use "
                "allocation global, or leave them out of the structures"
            )
        _remove_evenly(remainder, free, structures, granule, budget.limit)
    else:
        moves = [
            move for index in free for move in layer_moves(remainder, index, structures, granule)
        ]
        moves.sort(key=lambda move: move.ratio)
        _remove_cheapest(remainder, moves, budget.limit)
    if remainder.weight > budget.limit:
        raise BudgetError(
            f"{budget.label}: cannot be met by removing {', '.join(structures)} with "
            f"{len(config.layers) - len(free)} of {len(config.layers)} layers protected; "
            f"possible is {budget.describe(remainder.weight)} to {budget.describe(full_weight)}"
        )
    return remainder.kept()


def _granule(remainder: Remainder) -> int:
    """Neurons that go together: a panel where a budget can still be hit closely, else fewer."""
    dearest = max((price.neuron for price in remainder.prices), default=0.0)
    granule = PANEL
    while granule > 1 and granule * dearest > GRANULE_SHARE * remainder.weight:
        granule //= 2
    return granule


def _remove_cheapest(remainder: Remainder, moves: list[Move], limit: float) -> None:
    """Make moves in the given order, those too large for what is left to remove last."""
    too_large: list[Move] = []
    for move in moves:
        left = move.apply(remainder.layers[move.layer])
        if left is None:
            continue
        if remainder.saving(move.layer, left) <= remainder.weight - limit:
            remainder.replace(move.layer, left)
        else:
            too_large.append(move)
    while remainder.weight > limit:
        options = [
            (move, left)
            for move in too_large
            if (left := move.apply(remainder.layers[move.layer])) is not None
        ]
        if not options:
            return
        excess = remainder.weight - limit

        def overshoot(option: tuple[Move, Left], excess: float = excess) -> float:
            saving = remainder.saving(option[0].layer, option[1])
            return saving - excess if saving >= excess else float("inf")

        best = min(options, key=overshoot)
        remainder.replace(best[0].layer, best[1])


def _remove_evenly(
    remainder: Remainder,
    free: list[int],
    structures: tuple[Structure, ...],
    granule: int,
    limit: float,
) -> None:
    """Take the same share of the units of each layer, then one unit more of the cheapest layers."""
    start = remainder.weight

    def at(index: int, share: float) -> Left:
        return _at_share(remainder, index, share, structures, granule)

    def weight(share: float) -> int:
        saved = sum(
            remainder.layer_weight(index, remainder.layers[index])
            - remainder.layer_weight(index, at(index, share))
            for index in free
        )
        return start - saved

    shares = _steps(remainder.config, free, granule)
    low, high = 0, len(shares) - 1  # weight(shares[low]) > limit, or low is 0
    while high - low > 1:
        middle = (low + high) // 2
        if weight(shares[middle]) > limit:
            low = middle
        else:
            high = middle
    for index in free:
        remainder.replace(index, at(index, shares[low]))

    def added_cost(index: int) -> float:
        before, after = at(index, shares[low]), at(index, shares[high])
        saved = remainder.layer_weight(index, before) - remainder.layer_weight(index, after)
        return (_cost(remainder, index, after) - _cost(remainder, index, before)) / max(1, saved)

    for index in sorted(free, key=added_cost):
        if remainder.weight <= limit:
            return
        remainder.replace(index, at(index, shares[high]))


def _steps(config: ModelConfig, free: list[int], granule: int) -> list[float]:
    """The shares, ascending from 0, at which some layer loses one unit more."""
    shares = {0.0, 1.0}
    for index in free:
        layer = config.layers[index]
        if isinstance(layer.attention, AttentionConfig):
            for count in (layer.attention.n_heads, layer.attention.n_kv_heads):
                shares.update(unit / count for unit in range(1, count))
            for part in HEAD_PARTS:
                count, step = part_count(layer.attention, part), part_granule(part, granule)
                shares.update(gone / count for gone in range(step, count, step))
        if isinstance(layer.ffn, RoutedFfnConfig):
            n_experts = len(layer.ffn.experts)
            shares.update(unit / n_experts for unit in range(1, n_experts))
        if isinstance(layer.ffn, (FfnConfig, RoutedFfnConfig)):
            neurons = layer.ffn.n_neurons
            shares.update(count / neurons for count in range(granule, neurons, granule))
    return sorted(shares)


def _at_share(
    remainder: Remainder,
    index: int,
    share: float,
    structures: tuple[Structure, ...],
    granule: int,
) -> Left:
    """One layer without its cheapest ``share`` of units, rounded down; one unit stays."""
    rated, attention = remainder.scores[index], remainder.config.layers[index].attention
    left = whole(remainder.config, index)
    heads, neurons = left.heads, left.neurons
    parts = {part: left.part(part) for part in HEAD_PARTS}
    if heads is not None and isinstance(attention, AttentionConfig):
        n_gone = _rounded(share, attention.n_heads)
        if "kv_groups" in structures and rated.kv_groups is not None:
            groups = _cheapest(rated.kv_groups, _rounded(share, attention.n_kv_heads))
            heads = frozenset(h for h in heads if attention.q_to_kv[h] not in groups)
        if "heads" in structures and rated.heads is not None:
            order = _cheapest(rated.heads, attention.n_heads)
            n_more = min(n_gone - (attention.n_heads - len(heads)), len(heads) - 1)
            heads = heads - set([head for head in order if head in heads][: max(0, n_more)])
    if neurons is not None and "neurons" in structures:
        neurons = _fewer(neurons, share, granule)
    for part, count in parts.items():
        if count is not None and part in structures:
            parts[part] = _fewer(count, share, part_granule(part, granule))
    experts = left.experts
    if experts is not None and "experts" in structures and rated.experts is not None:
        experts -= set(_cheapest(rated.experts, _rounded(share, len(experts))))
    return Left(left.attention, left.ffn, heads, neurons, experts, **parts)


def _fewer(count: int, share: float, granule: int) -> int:
    """What is left of ``count`` units; a granule at least."""
    return max(count - _rounded(share, count, granule), min(granule, count))


def _rounded(share: float, count: int, granule: int = 1) -> int:
    """``share`` of ``count`` units rounded down to granules; below ``count`` where it is 1."""
    return min(int(share * count / granule + 1e-9) * granule, max(0, count - 1))


def _cheapest(scores: npt.NDArray[np.float64], count: int) -> list[int]:
    return [int(unit) for unit in np.argsort(scores, kind="stable")[:count]]


def _cost(remainder: Remainder, index: int, left: Left) -> float:
    """Sum of the scores of the units that have gone from one layer."""
    rated, start = remainder.scores[index], whole(remainder.config, index)
    cost = 0.0
    if rated.heads is not None and start.heads is not None and left.heads is not None:
        cost += float(sum(rated.heads[head] for head in sorted(start.heads - left.heads)))
    if rated.experts is not None and start.experts is not None and left.experts is not None:
        cost += float(sum(rated.experts[expert] for expert in sorted(start.experts - left.experts)))
    if rated.neurons is not None and start.neurons is not None and left.neurons is not None:
        cost += float(np.sort(rated.neurons)[: start.neurons - left.neurons].sum())
    for part in HEAD_PARTS:
        costs, there = rated.part(part), start.part(part)
        if costs is not None and there is not None:
            cost += float(np.sort(costs)[: there - (left.part(part) or 0)].sum())
    return cost

"""How many zeros each matrix gets, so that all of them together cost least.

What the zeros of a matrix cost grows with their share as the energy of normal values does that are
the smallest, since that is about what its weights are. Then a total is shared out best when the
dearest weight that goes costs the same everywhere.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from slimformer.prune.zeros.choice import layer_of
from slimformer.prune.zeros.prices import KINDS, Costs, kind_of

TRUST = 0.5
"""Weight of a layer's measured cost against the usual one, on a scale of ratios, as in
``pricing``."""

LOWEST = 0.2
"""Costs below this share of the usual one are chance."""

FARTHEST = 0.15
"""How far a share may be from the mean one: beyond that the costs of a draft say little."""

_NORMAL = statistics.NormalDist()


def shares_by_cost(costs: Costs, sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
    """The share of zeros of each matrix.

    A weight is taken to cost what its kind does times what its layer does.

    Parameters
    ----------
    costs
        Of some more zeros than ``sparsity`` everywhere.
    sizes
        Weights of each matrix, by name.
    sparsity
        The share of all weights that becomes zero.
    """
    kinds = {name: kind_of(name) for name in sizes}
    layers = {name: layer_of(name) or 0 for name in sizes}
    of_kind = _ratios(costs.kinds, [_total(sizes, kinds, one) for one in range(len(KINDS))])
    of_layer = _ratios(
        costs.layers, [_total(sizes, layers, one) for one in range(len(costs.layers))]
    )
    rates = {name: of_kind[kinds[name]] * of_layer[layers[name]] ** TRUST for name in sizes}
    least, most = max(0.0, sparsity - FARTHEST), min(1 - 1e-6, sparsity + FARTHEST)

    def share(name: str, level: float) -> float:
        """Of normal values those below a threshold, at which the next one costs ``level``."""
        return min(most, max(least, 2 * _NORMAL.cdf(level / math.sqrt(rates[name])) - 1))

    total = sum(sizes.values())
    low, high = 0.0, 10.0 * math.sqrt(max(rates.values(), default=1.0))
    for _ in range(60):
        level = (low + high) / 2
        found = sum(size * share(name, level) for name, size in sizes.items())
        low, high = (level, high) if found < sparsity * total else (low, level)
    return {name: share(name, high) for name in sizes}


def _total(sizes: Mapping[str, int], classes: Mapping[str, int], one: int) -> int:
    """Weights of all matrices of a class."""
    return sum(size for name, size in sizes.items() if classes[name] == one)


def _ratios(costs: Sequence[float], weights: Sequence[int]) -> list[float]:
    """What a weight costs in each class, over what one costs on average."""
    usual = sum(costs) / max(1, sum(weights))
    if usual <= 0:
        return [1.0] * len(costs)
    return [
        max(cost / weight / usual, LOWEST) if weight else 1.0
        for cost, weight in zip(costs, weights, strict=True)
    ]

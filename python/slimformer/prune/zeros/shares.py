"""How many zeros each matrix gets, so that all of them together cost least.

What the zeros of a matrix cost grows with their share as the energy of normal values does that are
the smallest, since that is about what its weights are. Then a total is shared out best when the
dearest weight that goes costs the same everywhere.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

TRUST = 0.5
"""Weight of a measured cost against the usual one, on a scale of ratios, as in ``pricing``: costs
from a thousand tokens are wrong by as much as they differ."""

LOWEST = 0.1
"""Costs below this share of the usual one are chance."""

FARTHEST = 0.25
"""How far a share may be from the mean one: beyond that the costs of a draft say little."""

_NORMAL = statistics.NormalDist()


def shares_by_cost(
    costs: Mapping[tuple[str, ...], float], sizes: Mapping[str, int], sparsity: float
) -> dict[str, float]:
    """The share of zeros of each matrix.

    Parameters
    ----------
    costs
        Of the zeros of matrices at the share ``sparsity``, by those that were priced together.
    sizes
        Weights of each of them.
    sparsity
        The share of all weights that becomes zero.
    """
    weights = {group: sum(sizes[name] for name in group) for group in costs}
    rates = {group: cost / weights[group] for group, cost in costs.items()}
    usual = statistics.median([rate for rate in rates.values() if rate > 0] or [1.0])
    tempered = {
        group: max(rate / usual, LOWEST) ** TRUST if usual > 0 else 1.0
        for group, rate in rates.items()
    }
    least, most = max(0.0, sparsity - FARTHEST), min(1 - 1e-6, sparsity + FARTHEST)

    def share(group: tuple[str, ...], level: float) -> float:
        """Of a normal value's weights those below a threshold, where the last costs ``level``."""
        threshold = level / math.sqrt(tempered[group])
        return min(most, max(least, 2 * _NORMAL.cdf(threshold) - 1))

    total = sum(weights.values())
    low, high = 0.0, 10.0 / math.sqrt(min(tempered.values(), default=1.0))
    for _ in range(60):
        level = (low + high) / 2
        found = sum(weights[group] * share(group, level) for group in costs)
        low, high = (level, high) if found < sparsity * total else (low, level)
    return {name: share(group, high) for group in costs for name in group}

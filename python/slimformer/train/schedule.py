"""The learning rate over the budget."""

from __future__ import annotations

import math

WARM_UP = 0.05
"""Share of the budget in which the rate rises from nothing: AdamW's second moments are unreliable
in the first steps."""

LAST = 0.05
"""What is left of the highest rate at the end."""


def rate(share: float) -> float:
    """Factor on the highest learning rate when ``share`` of the budget is used up."""
    if share < WARM_UP:
        return max(LAST, share / WARM_UP)
    progress = (share - WARM_UP) / (1 - WARM_UP)
    return LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * progress))

"""The learning rate over the budget, and where training ends before that is used up."""

from __future__ import annotations

import math

WARM_UP = 0.05
"""Share of the budget in which the rate rises from nothing: AdamW's second moments are unreliable
in the first steps."""

LAST = 0.05
"""What is left of the highest rate at the end."""

COOLING = 0.1
"""Of the tokens that training has taken, how many more it takes to let the rate fall once held-out
text gains nothing any more. Much of what training brings comes when the rate falls: 135 million
parameters that had read 440,000 tokens gained nothing for another 210,000 at over half the rate."""


def rate(share: float) -> float:
    """Factor on the highest learning rate when ``share`` of the budget is used up."""
    if share < WARM_UP:
        return max(LAST, share / WARM_UP)
    progress = (share - WARM_UP) / (1 - WARM_UP)
    return LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * progress))


def cooled(share: float) -> float:
    """Factor on that when ``share`` of the cooling is over."""
    return 1 - (1 - LAST) * share

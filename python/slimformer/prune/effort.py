"""How much work goes into a plan and a repair."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from slimformer.errors import ConfigError

Effort = Literal["fast", "balanced", "thorough"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)


@dataclasses.dataclass(frozen=True)
class Work:
    """What an effort comes to.

    Parameters
    ----------
    plan_tokens
        Tokens that units are rated on. Choosing needs few.
    search_rounds
        Rounds of the search over allocations.
    repair_tokens
        Tokens that the repair is fitted on. A refit over-fits few, and what learns beside it wants
        more of them than that.
    passes
        How often what is left of each FFN learns from that text, beside being refitted.
    """

    plan_tokens: int
    search_rounds: int
    repair_tokens: int
    passes: int


_WORK: dict[str, Work] = {
    "fast": Work(plan_tokens=8192, search_rounds=0, repair_tokens=32768, passes=0),
    "balanced": Work(plan_tokens=16384, search_rounds=2, repair_tokens=98304, passes=1),
    "thorough": Work(plan_tokens=24576, search_rounds=3, repair_tokens=163840, passes=2),
}


def work(effort: str) -> Work:
    """What an effort comes to.

    Raises
    ------
    ConfigError
        Unknown effort.
    """
    if effort not in _WORK:
        raise ConfigError(f"effort: expected one of {', '.join(EFFORTS)}, found {effort!r}")
    return _WORK[effort]

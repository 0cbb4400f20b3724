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
    rounds
        Rounds in which units are priced and removed, each on the repaired result of the one
        before: what looks cheap in an intact model may be so only while the others are there.
    plan_tokens
        Tokens that units are priced on in each round. Choosing needs few.
    round_tokens
        Tokens that the repair between two rounds is fitted on.
    repair_tokens
        Tokens that the final repair is fitted on. It over-fits few; more of them help more than
        anything else.
    """

    rounds: int
    plan_tokens: int
    round_tokens: int
    repair_tokens: int


_WORK: dict[str, Work] = {
    "fast": Work(rounds=1, plan_tokens=8192, round_tokens=0, repair_tokens=49152),
    "balanced": Work(rounds=2, plan_tokens=16384, round_tokens=16384, repair_tokens=163840),
    "thorough": Work(rounds=4, plan_tokens=32768, round_tokens=32768, repair_tokens=393216),
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

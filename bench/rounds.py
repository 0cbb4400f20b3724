"""Rounds in which every contender runs once, and what is made of their times."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Sequence

from contenders import Contender


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one contender, one entry a round."""

    name: str
    prefill: tuple[float, ...]
    decode: tuple[float, ...]

    def prefill_rate(self, tokens: int) -> float:
        """Median tokens per second."""
        return tokens / statistics.median(self.prefill)

    def decode_rate(self, tokens: int) -> float:
        """Median tokens per second."""
        return tokens / statistics.median(self.decode)

    def prefill_ratio(self, other: Timing) -> float:
        """How many times as fast as another: the median over the rounds."""
        pairs = zip(self.prefill, other.prefill, strict=True)
        return statistics.median(theirs / ours for ours, theirs in pairs)

    def decode_ratio(self, other: Timing) -> float:
        """How many times as fast as another: the median over the rounds."""
        pairs = zip(self.decode, other.decode, strict=True)
        return statistics.median(theirs / ours for ours, theirs in pairs)


def run_rounds(
    contenders: Sequence[Contender], *, prompt: int, generate: int, rounds: int
) -> list[Timing]:
    """Warm everyone up once, then time everyone in turn, so that all meet the same drift."""
    prefill: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    decode: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds + 1):
        for contender in contenders:
            seconds = contender.prefill(prompt), contender.decode(generate)
            if number > 0:
                prefill[contender.name].append(seconds[0])
                decode[contender.name].append(seconds[1])
        print(f"round {number} of {rounds}", file=sys.stderr)
    return [Timing(name, tuple(prefill[name]), tuple(decode[name])) for name in prefill]

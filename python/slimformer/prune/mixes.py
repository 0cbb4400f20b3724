"""How much to gain by structure, how much by zeros and how much by fewer bits.

Which mix loses least at a size or a speed was measured by ``bench/mix.py`` on one model; the table
comes with the package. A choice for another model, or another budget, lies on or between its
points: bytes are counted for the model at hand, loss and speed are taken from the table.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

from slimformer.config import ModelConfig
from slimformer.engine import Weights
from slimformer.errors import BudgetError, FormatError
from slimformer.prune.zeros.choice import layer_sizes

TABLE = "mixes.json"

BITS: dict[str, float] = {"f32": 32.0, "bf16": 16.0, "int8": 8.25, "int4": 5.0}
"""Of a packed weight, scales included."""

SPARSE_BITS: dict[str, tuple[float, float]] = {"bf16": (16.0, 1.0), "int8": (8.0, 1.25)}
"""Of a weight that is kept, and for each place, where zeros are left out."""

VOCABULARY_BITS: dict[str, float] = {**BITS, "int4": 8.25}
"""Embedding and head stay int8 beside int4."""


@dataclasses.dataclass(frozen=True)
class Mix:
    """Share of the layers' parameters that stays, share of those that are zero, packed type."""

    keep: float
    sparsity: float
    weights: Weights

    def __str__(self) -> str:
        return f"{self.keep:.0%} kept, {self.sparsity:.0%} of it zero, {self.weights}"


@dataclasses.dataclass(frozen=True)
class Point:
    """What one mix does to the model of the table.

    ``nats`` a token more than the dense model in bf16 loses; ``decode`` times as fast.
    """

    mix: Mix
    nats: float
    decode: float


def measured_points() -> tuple[Point, ...]:
    """The table that comes with the package."""
    text = (importlib.resources.files("slimformer") / "data" / TABLE).read_text(encoding="utf-8")
    return read_points(text)


def read_points(text: str) -> tuple[Point, ...]:
    """A table as ``bench/mix.py`` writes it.

    Raises
    ------
    FormatError
        It is no such table.
    """
    try:
        points = tuple(
            Point(
                Mix(float(one["keep"]), float(one["sparsity"]), one["weights"]),
                float(one["nats"]),
                float(one["decode"]),
            )
            for one in json.loads(text)["points"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{TABLE}: expected points of mixes: {error}") from error
    if not points or any(point.mix.weights not in get_args(Weights) for point in points):
        raise FormatError(f"{TABLE}: expected points whose weights are {get_args(Weights)}")
    return points


def mixed_bytes(config: ModelConfig, mix: Mix) -> float:
    """Bytes of the packed weights, as far as they can be told before anything is removed."""
    layers = sum(layer_sizes(config).values())
    rest = config.parameters() - layers
    bits = BITS[mix.weights]
    if mix.weights in SPARSE_BITS:
        value, place = SPARSE_BITS[mix.weights]
        bits = min(bits, value * (1 - mix.sparsity) + place)
    return (mix.keep * layers * bits + rest * VOCABULARY_BITS[mix.weights]) / 8


def choose_mix(
    config: ModelConfig,
    points: Sequence[Point],
    *,
    max_bytes: int | None = None,
    speedup: float | None = None,
) -> Point:
    """The mix that loses least, and what it is expected to do.

    Parameters
    ----------
    config
        The model that is to be pruned.
    points
        What was measured.
    max_bytes
        Bytes that its packed weights may take.
    speedup
        Times as fast as in bf16 it is to decode; one of the two is given.

    Raises
    ------
    BudgetError
        No mix within the table is as small, or as fast.
    """

    def fits(point: Point) -> bool:
        if max_bytes is not None:
            return mixed_bytes(config, point.mix) <= max_bytes
        return point.decode >= (speedup or 1.0)

    found = [point for line in _lines(points) if (point := _largest(line, fits)) is not None]
    if not found:
        if max_bytes is not None:
            least = min(mixed_bytes(config, point.mix) for point in points)
            raise BudgetError(
                f"max_bytes {max_bytes}: the smallest mix in the table takes {least:.0f} bytes"
            )
        raise BudgetError(
            f"speedup {speedup}: the fastest mix in the table is "
            f"{max(point.decode for point in points):.2f} times as fast"
        )
    return min(found, key=lambda point: point.nats)


def _lines(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Points that differ only in what is kept, the smallest first."""
    kinds = dict.fromkeys((point.mix.sparsity, point.mix.weights) for point in points)
    for kind in kinds:
        line = [one for one in points if (one.mix.sparsity, one.mix.weights) == kind]
        yield sorted(line, key=lambda point: point.mix.keep)


def _largest(line: Sequence[Point], fits: Callable[[Point], bool]) -> Point | None:
    """The point on a line that keeps most and fits; between two that were measured, perhaps."""
    fitting = [index for index, point in enumerate(line) if fits(point)]
    if not fitting:
        return None
    last = max(fitting)
    if last + 1 == len(line):
        return line[last]
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if fits(_between(line[last], line[last + 1], middle)):
            low = middle
        else:
            high = middle
    return _between(line[last], line[last + 1], low)


def _between(first: Point, second: Point, share: float) -> Point:
    """The point ``share`` of the way from the first to the second."""

    def at(a: float, b: float) -> float:
        return a + share * (b - a)

    mix = dataclasses.replace(first.mix, keep=at(first.mix.keep, second.mix.keep))
    return Point(mix, at(first.nats, second.nats), at(first.decode, second.decode))

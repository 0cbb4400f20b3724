"""What the parts of a model take in time, between and beyond the widths that were timed."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from slimformer.config import AttentionConfig, FfnConfig, ModelConfig, RoutedFfnConfig
from slimformer.errors import FormatError
from slimformer.prune.budget import Budget

Choice = TypeVar("Choice")

TOLERANCE = 0.015
"""How far from the time asked for, as a share of it, a choice may be."""

ATTEMPTS = 5
"""Choices that are timed at most."""

TIMINGS = 3
"""Times that a choice has to come close: timings on a busy machine are off by 2 to 3 %, and a
choice that was only lucky misses what was asked for by that."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Nanoseconds of a sub-block at some widths, two at least, ascending."""

    widths: tuple[int, ...]
    times: tuple[float, ...]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.widths, self.widths[1:], strict=False))
        if len(self.widths) < 2 or len(self.times) != len(self.widths) or not ascending:
            raise FormatError(f"latency: expected times of ascending widths, found {self}")
        if not all(math.isfinite(time) and time >= 0 for time in self.times):
            raise FormatError(f"latency: expected finite times from 0, found {self.times}")

    def at(self, width: float) -> float:
        """Nanoseconds at any width: on the line between its neighbours, or through the nearest."""
        times = np.maximum.accumulate(self.times)  # less work never takes longer
        right = int(np.clip(np.searchsorted(self.widths, width), 1, len(self.widths) - 1))
        x0, x1 = self.widths[right - 1 : right + 1]
        y0, y1 = times[right - 1 : right + 1]
        return max(0.0, float(y0 + (y1 - y0) * (width - x0) / (x1 - x0)))


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """Nanoseconds of what one model consists of, on one machine in one setting.

    Parameters
    ----------
    fixed
        What no layer changes: embedding, final norm, head.
    attention
        By the rows of q, k and v and the columns of o, in all.
    ffn
        By neurons; of experts by the mean of theirs, since a token runs as many of them however
        many there are.
    """

    fixed: float
    attention: Curve
    ffn: Curve

    @staticmethod
    def from_dict(value: Any) -> LatencyTable:
        """Read the JSON form, that of ``dataclasses.asdict``.

        Raises
        ------
        FormatError
            It is not one.
        """
        try:
            curves = (
                Curve(tuple(map(int, part["widths"])), tuple(map(float, part["times"])))
                for part in (value["attention"], value["ffn"])
            )
            return LatencyTable(float(value["fixed"]), *curves)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"latency: not a table: {error!r:.80}") from error

    def price(self, config: ModelConfig, index: int) -> LayerTime:
        """What the parts of a model's layer take."""
        layer = config.layers[index]
        head = kv_head = 0
        attention, ffn = Curve((0, 1), (0.0, 0.0)), Curve((0, 1), (0.0, 0.0))
        if isinstance(layer.attention, AttentionConfig):
            head = kv_head = layer.attention.head_dim + layer.attention.value_dim
            attention = self.attention
        elif layer.attention is not None:
            attention = self._link(config, index, "attention")
        n_experts = 1
        if isinstance(layer.ffn, FfnConfig | RoutedFfnConfig):
            ffn = self.ffn
        elif layer.ffn is not None:
            ffn = self._link(config, index, "ffn")
        if isinstance(layer.ffn, RoutedFfnConfig):
            n_experts = len(layer.ffn.experts)
        return LayerTime(attention, head, kv_head, ffn, n_experts)

    def _link(self, config: ModelConfig, index: int, sub_block: str) -> Curve:
        """A link takes what as many weights of an FFN take."""
        prefix = f"layers.{index}.{sub_block}.link."
        shapes = config.tensor_shapes().items()
        elements = sum(math.prod(shape) for name, shape in shapes if name.startswith(prefix))
        neurons = elements / (3 * config.n_channels)
        widest = self.ffn.widths[-1]
        time = self.ffn.at(widest) * neurons / widest
        return Curve((0, 1), (time, time))


@dataclasses.dataclass(frozen=True)
class LayerTime:
    """What the parts of one layer take; see ``slimformer.prune.structures.Price``."""

    attention: Curve
    head: int
    kv_head: int
    ffn: Curve
    n_experts: int = 1

    @property
    def neuron(self) -> float:
        """Nanoseconds of a neuron, in the mean."""
        first, last = self.ffn.widths[0], self.ffn.widths[-1]
        return (self.ffn.at(last) - self.ffn.at(first)) / (last - first) / self.n_experts

    def of(
        self,
        heads: int,
        kv_heads: int,
        neurons: int,
        *,
        attention: bool,
        ffn: bool,
        experts: int = 0,
        values_gone: int = 0,
        pairs_gone: int = 0,
    ) -> int:
        """Nanoseconds of a layer with that many units and those sub-blocks."""
        gone = values_gone + 2 * pairs_gone
        width = heads * (self.head - gone) + kv_heads * (self.kv_head - gone)
        total = self.attention.at(width) if attention else 0.0
        return round(total + (self.ffn.at(neurons / max(1, experts)) if ffn else 0.0))


def width_of(ffn: FfnConfig | RoutedFfnConfig) -> int:
    """Neurons of an FFN; of experts the mean of theirs."""
    n_experts = len(ffn.experts) if isinstance(ffn, RoutedFfnConfig) else 1
    return round(ffn.n_neurons / n_experts)


def dense_time(table: LatencyTable, config: ModelConfig) -> float:
    """Nanoseconds of a whole model by the table."""
    total = table.fixed
    for index, layer in enumerate(config.layers):
        heads = kv_heads = neurons = experts = 0
        if isinstance(layer.attention, AttentionConfig):
            heads, kv_heads = layer.attention.n_heads, layer.attention.n_kv_heads
        if isinstance(layer.ffn, FfnConfig | RoutedFfnConfig):
            neurons = layer.ffn.n_neurons
        if isinstance(layer.ffn, RoutedFfnConfig):
            experts = len(layer.ffn.experts)
        total += table.price(config, index).of(
            heads,
            kv_heads,
            neurons,
            attention=layer.attention is not None,
            ffn=layer.ffn is not None,
            experts=experts,
        )
    return total


def time_budget(table: LatencyTable, nanoseconds: float, label: str) -> Budget:
    """At most so many nanoseconds by the table."""
    return Budget(label, nanoseconds, round(table.fixed), 1e6, "{:.3f} ms", table.price)


def hit(
    target: float, choose: Callable[[float], Choice], measure: Callable[[Choice], float]
) -> tuple[Choice, float]:
    """The choice that, measured, comes closest to a time.

    A table is not the whole truth: after each measurement the limit moves by the factor by
    which the last choice missed. A choice that comes close enough is measured again.

    Parameters
    ----------
    target
        Time wanted, above 0.
    choose
        What to keep for a limit by the table.
    measure
        Time that a choice takes.

    Returns
    -------
    The choice, and its measured time as a multiple of the one wanted: the median, if it was
    measured again.
    """
    limit = target
    measured: list[tuple[Choice, float]] = []
    while len(measured) < ATTEMPTS:
        choice = choose(limit)
        times = [measure(choice)]
        while _close(times, target) and len(times) < TIMINGS:
            times.append(measure(choice))
        measured.append((choice, statistics.median(times) / target))
        if _close(times, target):
            break
        limit /= measured[-1][1]
    return min(measured, key=lambda one: abs(one[1] - 1))


def _close(times: list[float], target: float) -> bool:
    return abs(statistics.median(times) / target - 1) <= TOLERANCE

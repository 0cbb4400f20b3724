"""The table and the plot of ``quality.py``."""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
from collections.abc import Iterator

import matplotlib as mpl
from matplotlib.figure import Figure

MARKERS = "os^vDP*X<>h"
TICKS = (1, 1.2, 1.5, 2, 3, 4, 6)


@dataclasses.dataclass(frozen=True)
class Row:
    """One method at one budget.

    ``keep`` was asked for, ``share`` of the parameters outside the embedding is left; perplexities
    and speeds are multiples of the dense model's.
    """

    method: str
    keep: float
    share: float
    seconds: float
    perplexity: dict[str, float]
    prefill: float | None = None
    decode: float | None = None

    def timed(self, prefill: float, decode: float) -> Row:
        """The same with speeds."""
        return dataclasses.replace(self, prefill=prefill, decode=decode)

    @property
    def loss(self) -> float:
        """Geometric mean of the perplexities."""
        logs = [math.log(value) for value in self.perplexity.values()]
        return math.exp(sum(logs) / len(logs))


def table(options: argparse.Namespace, rows: list[Row]) -> Iterator[str]:
    """Markdown lines."""
    texts = list(rows[0].perplexity)
    given = options.calibration or []
    source = ", ".join(path.name for path in given) or "the model's own writing"
    yield "# Quality against speed"
    yield ""
    yield (
        f"Written by `python bench/quality.py` on `{options.model}`: calibrated on "
        f"{options.tokens:,} tokens ({source}), seed {options.seed}; perplexity on up to "
        f"{options.windows} windows in float32, speed in bf16, both as multiples of the dense "
        "model's."
    )
    yield ""
    yield "| keep | method | share left | " + " | ".join(texts) + " | prefill | decode | seconds |"
    yield "|---:|---|---:|" + "---:|" * (len(texts) + 3)
    for row in rows:
        perplexities = " | ".join(_multiple(row.perplexity[text]) for text in texts)
        yield (
            f"| {row.keep:g} | {row.method} | {row.share:.3f} | {perplexities} | "
            f"{_multiple(row.prefill)} | {_multiple(row.decode)} | {row.seconds:.0f} |"
        )


def plot(rows: list[Row]) -> str:
    """Perplexity over decode speed, a curve a method, as SVG; without speeds over the share."""
    figure = Figure(figsize=(8.2, 5.0), layout="constrained")
    axes = figure.subplots()
    timed = all(row.decode is not None for row in rows)
    dense, pruned = rows[0], rows[1:]
    for number, method in enumerate(dict.fromkeys(row.method for row in pruned)):
        points = [row for row in pruned if row.method == method]
        curve = [dense, *sorted(points, key=lambda row: -row.share)]
        places = [(row.decode if timed else row.share) or 0.0 for row in curve]
        axes.plot(
            places,
            [row.loss for row in curve],
            marker=MARKERS[number % len(MARKERS)],
            linewidth=2.5 if method.startswith("Slimformer") else 1.2,
            label=method,
        )
    axes.set_yscale("log")
    axes.set_ylim(0.95, 6)  # what is above has collapsed
    axes.set_yticks(TICKS, labels=[f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_xlabel("decode speed, × dense" if timed else "share of the parameters left")
    axes.set_ylabel("perplexity, × dense")
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "slimformer", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _multiple(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"

"""The table, the plot and the recommendations of ``mix.py``."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Row:
    """One mix, or a type of llama.cpp for the whole model.

    ``nats`` a token more than the whole model loses, ``size`` in bytes, ``decode`` times as fast
    as the whole model in bf16.
    """

    keep: float
    sparsity: float
    weights: str
    nats: float
    size: float
    decode: float

    @property
    def foreign(self) -> bool:
        """Whether it is llama.cpp's."""
        return self.weights.startswith("llama.cpp")

    @property
    def label(self) -> str:
        """What the table and the plot call it."""
        if self.foreign:
            return self.weights
        return f"{self.keep:.0%} kept, {self.sparsity:.0%} zero, {self.weights}"


SIZES = (0.8, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25)
TICKS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 6)
SPEEDS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0)


def table(options: argparse.Namespace, rows: list[Row]) -> Iterator[str]:
    """Markdown lines."""
    ours = [row for row in rows if not row.foreign]
    whole = next(row for row in ours if (row.keep, row.sparsity, row.weights) == (1, 0, "bf16"))
    yield "# Structure, zeros or bits"
    yield ""
    yield (
        f"Written by `python bench/mix.py`: calibrated on {options.tokens:,} tokens of "
        f"{', '.join(path.name for path in options.calibration)}, seed {options.seed}; loss on "
        f"{options.windows} windows of 2,048 tokens of {options.text.name}, perplexity as a "
        "multiple of the whole model's (of llama.cpp's types, of its own float32); bytes are those "
        "of all packed weights, embedding included; decode of one sequence."
    )
    yield ""
    yield "| mix | perplexity × | bytes × bf16 | decode × bf16 | best at its size |"
    yield "|---|---:|---:|---:|---|"
    best = {id(row) for row in _frontier(rows, lambda row: row.size)}
    for row in sorted(rows, key=lambda row: -row.size):
        decode = "" if math.isnan(row.decode) else f"{row.decode:.2f}"
        yield (
            f"| {row.label} | {math.exp(row.nats):.3f} | {row.size / whole.size:.3f} | {decode} | "
            f"{'yes' if id(row) in best else ''} |"
        )
    yield ""
    yield "## What to take"
    yield ""
    yield "| bytes × bf16, at most | mix | perplexity × |"
    yield "|---:|---|---:|"
    for size in SIZES:
        fitting = [row for row in ours if row.size <= size * whole.size]
        if fitting:
            row = min(fitting, key=lambda row: row.nats)
            yield f"| {size:g} | {row.label} | {math.exp(row.nats):.3f} |"
    timed = [row for row in ours if not math.isnan(row.decode)]
    if timed:
        yield ""
        yield "| decode × bf16, at least | mix | perplexity × |"
        yield "|---:|---|---:|"
        for speed in SPEEDS:
            fitting = [row for row in timed if row.decode >= speed]
            if fitting:
                row = min(fitting, key=lambda row: row.nats)
                yield f"| {speed:g} | {row.label} | {math.exp(row.nats):.3f} |"


def points_json(rows: list[Row]) -> str:
    """The table that the package goes by."""
    points = [
        {
            "keep": row.keep,
            "sparsity": row.sparsity,
            "weights": row.weights,
            "nats": round(row.nats, 4),
            "decode": round(row.decode, 3),
        }
        for row in rows
        if not row.foreign and not math.isnan(row.decode)
    ]
    return json.dumps({"points": points}, indent=1) + "\n"


def plot(rows: list[Row]) -> str:
    """Loss over bytes and over decode speed with their frontiers, as SVG."""
    figure = Figure(figsize=(11.0, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, rows, lambda row: row.size / 1e6)
    left.set_xlabel("MB of packed weights")
    timed = [row for row in rows if not math.isnan(row.decode)]
    _panel(right, timed, lambda row: 1 / row.decode)
    right.set_xlabel("time of a decoded token, × bf16")
    left.set_ylabel("perplexity, × whole model")
    left.legend(frameon=False, fontsize="small")
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "slimformer", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _panel(axes: Axes, rows: list[Row], place: Callable[[Row], float]) -> None:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = "llama.cpp, whole" if row.foreign else f"{row.weights}, {row.sparsity:.0%} zero"
        groups.setdefault(key, []).append(row)
    for name, group in groups.items():
        alone = name == "int8, 0% zero"
        ordered = sorted(group, key=place)
        axes.plot(
            [place(row) for row in ordered],
            [math.exp(row.nats) for row in ordered],
            marker="x" if name.startswith("llama.cpp") else "o",
            linewidth=2.5 if alone else 1.0,
            label=f"{name} (pruned alone)" if alone else name,
        )
    best = _frontier([row for row in rows if not row.foreign], place)
    axes.step(
        [place(row) for row in best],
        [math.exp(row.nats) for row in best],
        where="post",
        linestyle=":",
        color="black",
        label="frontier of the mixes",
    )
    axes.set_yscale("log")
    axes.set_yticks(TICKS, labels=[f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _frontier(rows: list[Row], place: Callable[[Row], float]) -> list[Row]:
    """Rows that no other beats in both, the smallest first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (place(row), row.nats)):
        if not best or row.nats < best[-1].nats:
            best.append(row)
    return best

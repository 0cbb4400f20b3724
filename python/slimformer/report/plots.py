"""Plots of a comparison, as SVG texts that can stand in an HTML page.

Colours are from a palette that colour-blind readers can tell apart (Okabe and Ito 2008).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slimformer.report.results import Importance, ModelResults

ATTENTION = "#0072b2"
FFN = "#e69f00"
NEUTRAL = "#666666"
HEIGHT = 2.9
WIDTH = 8.2


def importance_plot(importance: Importance) -> str:
    """What each sub-block of each layer matters, as bars."""
    figure, axes = _figure()
    _paired_bars(axes, importance.attention, importance.ffn)
    axes.set_ylabel("importance")
    largest = max((v for v in [*importance.attention, *importance.ffn] if v), default=1.0)
    smallest = min((v for v in [*importance.attention, *importance.ffn] if v), default=1.0)
    if smallest > 0 and largest / smallest > 50:
        axes.set_yscale("log")
    return _svg(figure)


def kept_plot(dense: ModelResults, pruned: ModelResults) -> str:
    """The share of query heads and of neurons that each layer of the dense model keeps."""
    figure, axes = _figure()
    kept = dict(zip(pruned.source_layers, pruned.layers, strict=True))
    _paired_bars(
        axes,
        [_share(layer, kept.get(index), "heads") for index, layer in enumerate(dense.layers)],
        [_share(layer, kept.get(index), "neurons") for index, layer in enumerate(dense.layers)],
    )
    axes.set_ylabel("kept, %")
    axes.set_ylim(0, 105)
    return _svg(figure)


def tradeoff_plot(models: Sequence[ModelResults]) -> str:
    """Perplexity of each text against decode speed: right and down is better."""
    figure, axes = _figure()
    names = [quality.name for quality in models[0].quality if quality.accuracy is None]
    timed = [model for model in models if model.timing is not None]
    for name, colour, marker in zip(names, (ATTENTION, FFN, NEUTRAL), "os^", strict=False):
        points = [
            (model.timing.decode_tokens_per_s, quality.perplexity)
            for model in timed
            for quality in model.quality
            if model.timing is not None and quality.name == name and quality.perplexity is not None
        ]
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=name)
    for model in timed:
        if model.timing is not None:
            axes.axvline(model.timing.decode_tokens_per_s, color=NEUTRAL, linewidth=0.6, alpha=0.5)
            axes.annotate(
                model.name,
                (model.timing.decode_tokens_per_s, 1.02),
                xycoords=("data", "axes fraction"),
                verticalalignment="bottom",
                horizontalalignment="center",
                color=NEUTRAL,
                fontsize=8,
            )
    axes.set_xlabel("decode, tokens/s")
    axes.set_ylabel("perplexity")
    axes.margins(x=0.15, y=0.2)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="best")
    return _svg(figure)


def _paired_bars(
    axes: Axes, attention: Sequence[float | None], ffn: Sequence[float | None]
) -> None:
    """Two bars a layer; what the dense model does not have is left out."""
    for values, shift, colour, label in (
        (attention, -0.2, ATTENTION, "attention"),
        (ffn, 0.2, FFN, "feed-forward"),
    ):
        present = [
            (index + shift, value) for index, value in enumerate(values) if value is not None
        ]
        axes.bar(
            [place for place, _ in present],
            [value for _, value in present],
            width=0.38,
            color=colour,
            label=label,
        )
    axes.set_xlabel("layer")
    axes.set_xlim(-0.7, max(len(attention), 1) - 0.3)
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _share(dense: dict[str, Any], pruned: dict[str, Any] | None, what: str) -> float | None:
    if dense[what] is None:
        return None
    if pruned is None or pruned[what] is None:
        return 0.0
    return float(100 * pruned[what] / dense[what])


def _figure() -> tuple[Figure, Axes]:
    """A figure of its own: pyplot would keep it, and choose a window system."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element, the same text for the same figure."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "slimformer", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]

"""Criteria: what removing a unit costs. One criterion a file, one table of them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import ModelConfig
from slimformer.errors import ConfigError
from slimformer.progress import Progress, silent
from slimformer.prune.budget import Budget
from slimformer.prune.importance import (
    activation,
    block_influence,
    greedy_loss,
    magnitude,
    obs,
)
from slimformer.prune.importance.scores import LayerScores, Scores, check_scores
from slimformer.prune.importance.statistics import LayerStatistics, layer_statistics
from slimformer.prune.journal import Journal
from slimformer.prune.stream import Windows, embed
from slimformer.prune.structures import STRUCTURES, Structure

Criterion = Literal["magnitude", "activation", "block_influence", "greedy_loss", "obs", "loss"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

_Score = Callable[[Checkpoint, int, LayerStatistics], LayerScores]

BLOCKS: tuple[Structure, ...] = ("layers", "attention", "ffn")

RATES: dict[Criterion, tuple[Structure, ...]] = {
    "magnitude": STRUCTURES,
    "activation": STRUCTURES,
    "block_influence": BLOCKS,
    "greedy_loss": (*BLOCKS, "experts"),
    "obs": STRUCTURES,
    "loss": STRUCTURES,
}
"""The structures that each criterion rates."""

PREDICTING: tuple[Criterion, ...] = ("greedy_loss", "loss")
"""Criteria that rate by what the model predicts: an encoder predicts nothing."""

_STREAMED: dict[str, tuple[_Score, Literal["none", "norms", "grams"]]] = {
    "activation": (activation.score, "norms"),
    "block_influence": (block_influence.score, "none"),
    "obs": (obs.score, "grams"),
    "loss": (obs.score, "grams"),
}
"""Criteria that rate a layer by its statistics, and what these must hold. ``loss`` begins as
``obs``; ``slimformer.prune.pricing`` makes nats of its errors."""


def default_criterion(config: ModelConfig, structures: tuple[Structure, ...]) -> Criterion:
    """The criterion where nothing is said: the one that is best at these structures of a model."""
    of_blocks: Criterion = "greedy_loss" if set(structures) <= set(BLOCKS) else "loss"
    return of_blocks if config.causal else "obs"


def check_criterion(criterion: str, structures: tuple[Structure, ...]) -> None:
    """Raise ConfigError unless the criterion exists and rates all these structures."""
    if criterion not in RATES:
        raise ConfigError(f"criterion: expected one of {', '.join(CRITERIA)}, found {criterion!r}")
    if not set(structures) <= set(RATES[criterion]):
        able = [name for name, rated in RATES.items() if set(structures) <= set(rated)]
        raise ConfigError(
            f"criterion {criterion} rates {', '.join(RATES[criterion])}; for "
            f"{', '.join(structures)} use {' or '.join(able)}"
        )


def score_model(
    checkpoint: Checkpoint,
    windows: Windows | None,
    budget: Budget,
    *,
    criterion: Criterion,
    structures: tuple[Structure, ...],
    protect: frozenset[int],
    journal: Journal | None = None,
    threads: int = 0,
    progress: Progress = silent,
) -> Scores:
    """Rate all layers of a model; ``windows`` may be ``None`` for magnitude only.

    Criteria that go through the model layer by layer write finished ones into the journal, and
    do not do again what is there.
    """
    layers = checkpoint.config.layers
    if criterion == "magnitude":
        scores = tuple(magnitude.score(checkpoint, index) for index in range(len(layers)))
    else:
        assert windows is not None
        if criterion == "greedy_loss":
            scores = greedy_loss.score_model(
                checkpoint,
                windows,
                budget,
                structures=structures,
                protect=protect,
                threads=threads,
                progress=progress,
            )
        else:
            pairs = "rotary_pairs" in structures
            scores = _stream(checkpoint, windows, criterion, pairs, journal, threads, progress)
    check_scores(scores, layers)
    return scores


def _stream(
    checkpoint: Checkpoint,
    windows: Windows,
    criterion: str,
    pairs: bool,
    journal: Journal | None,
    threads: int,
    progress: Progress,
) -> Scores:
    score, inputs = _STREAMED[criterion]
    resumed = None if journal is None else journal.resume()
    first, scores, hidden = 0, [], None
    if resumed is not None:
        last, found, standing = resumed
        first = last + 1
        scores = [LayerScores.unpack(found, f"{index}.") for index in range(first)]
        hidden = standing["hidden"].read().copy()
    if hidden is None:
        hidden = embed(checkpoint, windows)
    flow = layer_statistics(
        checkpoint,
        hidden,
        first=first,
        inputs=inputs,
        pairs=pairs,
        threads=threads,
        progress=progress,
    )
    for index, statistics in enumerate(flow, first):
        scores.append(score(checkpoint, index, statistics))
        if journal is not None:
            journal.record(index, scores[-1].pack(f"{index}."), {"hidden": hidden})
    return tuple(scores)

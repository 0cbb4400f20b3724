"""Search over allocations: prices are measured again on what they led to.

Prices hold for the draft that they were measured on. An allocator that follows them goes on until
they no longer hold; and a price from a few thousand tokens is half chance. So the search moves in
rounds: prices are measured on the best allocation so far, on other text each time, and some ways
towards them are tried. The one whose draft diverges least from the dense model, on text that it
was not fitted on, is where the next round begins.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.progress import Progress, silent
from slimformer.prune.drafts import TRIAL_WINDOW, Draft, Walk
from slimformer.prune.importance.scores import Scores
from slimformer.prune.journal import Journal
from slimformer.prune.pricing import Prices, measure_prices, smooth, towards
from slimformer.prune.recipe import KeptLayer, Recipe
from slimformer.prune.stream import Windows
from slimformer.prune.structures import Structure
from slimformer.prune.windows import split

WAYS = (0.5, 0.3, 0.15)
"""Shares of the way to newly measured prices that are tried; of equal allocations the first."""

TRIAL_SHARE = 0.25
"""Share of the windows that allocations are compared on."""


def search(
    checkpoint: Checkpoint,
    scores: Scores,
    prices: Prices,
    choose: Callable[[Prices], Recipe],
    windows: Windows,
    *,
    rounds: int,
    structures: tuple[Structure, ...],
    journal: Callable[[str], Journal | None],
    threads: int = 0,
    progress: Progress = silent,
) -> Prices:
    """Prices that lead to a better allocation, or those given.

    Parameters
    ----------
    scores
        Errors, as ``obs`` rates them.
    prices
        Nats for each unit of error, where the search begins.
    choose
        The allocation that prices lead to.
    windows
        Calibration tokens, [windows, tokens].
    journal
        A place for the work of each name; finished layers are not done again.
    """
    for index in range(rounds):
        told = _in_round(progress, index + 1, rounds)
        draft = draft_from(checkpoint, choose(prices))
        text = np.roll(windows, index * len(windows) // rounds, axis=0)
        measured = measure_prices(
            checkpoint,
            scores,
            draft,
            text,
            structures=structures,
            journal=journal(f"search-prices-{index}"),
            threads=threads,
            progress=told,
        )
        smoothed = smooth(measured)
        ways = [towards(prices, smoothed, share) for share in (*WAYS, 0.0)]
        drafts = [draft_from(checkpoint, choose(way)) for way in ways]
        fit, trial = split(text, TRIAL_SHARE, length=TRIAL_WINDOW)
        walk = Walk(checkpoint, scores, drafts, fit, trial, varied=frozenset(), threads=threads)
        found = walk.run(journal(f"search-drafts-{index}"), "compare drafts", told)
        prices = ways[int(np.argmin(found.drafts))]
    return prices


def draft_from(checkpoint: Checkpoint, recipe: Recipe) -> Draft:
    """What a recipe keeps of every layer, also of those that it leaves out."""
    kept = {layer.source: layer for layer in recipe.layers}
    count = len(checkpoint.config.layers)
    return [kept.get(index, KeptLayer(index, None, None)) for index in range(count)]


def _in_round(progress: Progress, index: int, rounds: int) -> Progress:
    def told(what: str, done: int, total: int) -> None:
        progress(f"round {index} of {rounds}: {what}", done, total)

    return told

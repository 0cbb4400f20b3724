"""``plan_channels``: which channels of the residual stream stay, and in which basis."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.progress import Progress, silent
from slimformer.prune.calibrate import calibration_windows
from slimformer.prune.channels.choice import (
    check_count,
    measure_channels,
    principal_basis,
    select,
)
from slimformer.prune.channels.rotation import check_rotatable, rotate
from slimformer.prune.recipe import Recipe

TOKENS = 24576
"""What is measured are sums over all layers and tokens, and needs few of these: a basis found on
8,192 leaves smollm2-135m, narrowed from 576 to 512, 1.77 to 1.88 times the perplexity, one found on
24,576 1.69 to 1.79 times, and one on 65,536 1.75 to 1.82 times; selections are alike."""


def plan_channels(
    checkpoint: Checkpoint,
    count: int,
    *,
    rotated: bool = False,
    calibration: Sequence[str] | None = None,
    tokens: int = TOKENS,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> tuple[Checkpoint, Recipe]:
    """Choose the channels that stay, of the model as it is or of the same one in a better basis.

    Parameters
    ----------
    checkpoint
        The model.
    count
        Channels that stay.
    rotated
        Rotate the stream onto its principal directions, and keep the first of them. A tied head
        is one no longer then; what that weighs is a second matrix of the vocabulary.
    calibration, seed
        As for ``plan``.
    tokens
        About how many tokens to measure on.

    Returns
    -------
    The model that the recipe is for, and the recipe. Without ``rotated`` it is the given one.

    Raises
    ------
    BudgetError
        The model has fewer channels, or none are to stay.
    UnsupportedModelError
        Its stream cannot be rotated.
    DataError
        Calibration text that cannot be used.
    """
    check_count(checkpoint, count)
    if rotated:
        check_rotatable(checkpoint)
    windows = calibration_windows(checkpoint, calibration, tokens, seed, threads, progress)
    statistics = measure_channels(checkpoint, windows, threads=threads, progress=progress)
    if not rotated:
        return checkpoint, select(checkpoint, statistics, count)
    turned = rotate(checkpoint, principal_basis(statistics))
    return turned, dataclasses.replace(Recipe.identity(turned), channels=tuple(range(count)))

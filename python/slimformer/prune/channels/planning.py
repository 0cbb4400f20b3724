"""``plan_channels``: which channels of the residual stream stay, and in which basis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.progress import Progress, silent
from slimformer.prune.calibrate import calibration_windows
from slimformer.prune.channels.choice import (
    check_count,
    measure_channels,
    principal_basis,
    select,
)
from slimformer.prune.channels.directions import cheapest_directions, completed
from slimformer.prune.channels.rotation import check_rotatable, rotate
from slimformer.prune.recipe import Recipe
from slimformer.prune.stream import Windows

Sensitivity = Callable[[Checkpoint, Windows], npt.NDArray[np.float64]]
"""What errors in what is read of the stream cost, [channels, channels]; see
``slimformer.train.stream_sensitivity``."""

TOKENS = 8192
"""What is measured are sums over all layers and tokens, and needs few of these."""


FELT_TOKENS = 4096
"""A gradient takes three times what a pass takes."""


def plan_channels(
    checkpoint: Checkpoint,
    count: int,
    *,
    rotated: bool = False,
    sensitivity: Sensitivity | None = None,
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
        Rotate the stream, so that the directions that go are channels. A tied head is one no
        longer then; what that weighs is a second matrix of the vocabulary.
    sensitivity
        What tells how much the loss feels of each direction, for those that go to be chosen by it:
        ``slimformer.train.stream_sensitivity``, which needs PyTorch. Without it those go that are
        least of the stream, which costs about twice as much.
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
    statistics = measure_channels(
        checkpoint,
        windows,
        apart=sensitivity is not None,
        threads=threads,
        progress=progress,
    )
    if not rotated:
        return checkpoint, select(checkpoint, statistics, count)
    if sensitivity is None:
        basis = principal_basis(statistics)
    else:
        felt = sensitivity(checkpoint, windows[: max(1, FELT_TOKENS // windows.shape[1])])
        gone = checkpoint.config.n_channels - count
        basis = completed(cheapest_directions(statistics.moments, felt, gone), statistics.moments)
    turned = rotate(checkpoint, basis)
    return turned, dataclasses.replace(Recipe.identity(turned), channels=tuple(range(count)))

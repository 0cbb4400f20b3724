"""The rotary pairs of every layer that matter most."""

from __future__ import annotations

from collections.abc import Sequence

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.errors import ConfigError
from slimformer.progress import Progress, silent
from slimformer.prune.calibrate import calibration_windows
from slimformer.prune.importance.pairs import TOKENS
from slimformer.prune.importance.statistics import layer_statistics
from slimformer.prune.remainder import dearest_units
from slimformer.prune.stream import embed
from slimformer.prune.structures import check_rotary_pairs


def dearest_pairs(
    checkpoint: Checkpoint,
    count: int,
    *,
    calibration: Sequence[str] | None = None,
    tokens: int = TOKENS,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> dict[int, tuple[int, ...]]:
    """So many rotary pairs of each layer, those without which it would be another the most.

    Parameters
    ----------
    checkpoint
        The model.
    count
        How many of each layer, 1 at least. A layer that has no more keeps all.
    calibration, seed
        As for ``plan``.
    tokens
        About how many tokens to measure on.

    Returns
    -------
    For each layer that loses some, the pairs that stay, ascending: what ``explicit`` takes.
    Layers that do not rotate, or norm each head by itself, lose none.

    Raises
    ------
    ConfigError
        No layer has pairs that may go, or ``count`` is below 1.
    DataError
        Calibration text that cannot be used.
    """
    check_rotary_pairs(checkpoint.config)
    if count < 1:
        raise ConfigError(f"rotary_pairs: expected at least 1, found {count}")
    windows = calibration_windows(checkpoint, calibration, tokens, seed, threads, progress)
    flow = layer_statistics(
        checkpoint,
        embed(checkpoint, windows),
        inputs="none",
        pairs=True,
        threads=threads,
        progress=progress,
    )
    return {
        index: dearest_units(statistics.pairs, count)
        for index, statistics in enumerate(flow)
        if statistics.pairs is not None and len(statistics.pairs) > count
    }

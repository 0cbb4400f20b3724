"""``align_values``: a model whose value heads lose least when their last entries go."""

from __future__ import annotations

from collections.abc import Sequence

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig
from slimformer.progress import Progress, silent
from slimformer.prune.calibrate import calibration_windows
from slimformer.prune.evidence import check_finite
from slimformer.prune.importance.statistics import layer_statistics
from slimformer.prune.outputs import Output
from slimformer.prune.stream import embed
from slimformer.prune.values.basis import best_bases, turn_values

TOKENS = 8192
"""A head has as many moments as it has entries, squared, and needs few tokens."""


def align_values(
    checkpoint: Checkpoint,
    *,
    calibration: Sequence[str] | None = None,
    tokens: int = TOKENS,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> Checkpoint:
    """The same model, the entries of its value heads in falling order of what they matter.

    The structure ``value_dims`` removes entries of the values, of all heads of a layer alike; of a
    model as it was trained all of them matter much the same.

    Parameters
    ----------
    checkpoint
        The model.
    calibration, seed
        As for ``plan``.
    tokens
        About how many tokens to measure on.

    Returns
    -------
    A model that says the same to rounding. Recipes are made for it, not for ``checkpoint``.

    Raises
    ------
    DataError
        Calibration text that cannot be used.
    """
    windows = calibration_windows(checkpoint, calibration, tokens, seed, threads, progress)
    flow = layer_statistics(
        checkpoint,
        embed(checkpoint, windows),
        inputs="grams",
        threads=threads,
        progress=progress,
    )
    bases = {}
    for index, statistics in enumerate(flow):
        attention = checkpoint.config.layers[index].attention
        if isinstance(attention, AttentionConfig):
            assert statistics.heads is not None
            assert statistics.heads.gram is not None
            check_finite(f"layers.{index}.attention.o", statistics.heads.gram)
            weight = Output(checkpoint, index, "attention").stream_weight
            bases[index] = best_bases(attention, weight, statistics.heads.gram)
    return turn_values(checkpoint, bases)

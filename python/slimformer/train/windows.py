"""Text to train on: windows of tokens, some of them held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.errors import DataError
from slimformer.progress import Progress, silent
from slimformer.prune.calibrate import hold_out, make_windows
from slimformer.prune.sample import sample_calibration
from slimformer.prune.stream import Windows

MAX_TOKENS = 1 << 24
"""Tokens of text that are kept; a processor does not train on more in a day."""

HELD_OUT_TOKENS = 4096
"""Tokens that are held out at most: their divergence is known to 2 %, and predicting them takes
as long as training on a third of them."""

HELD_OUT = 8
"""At most one window in so many is held out where texts are too few for ``hold_out``."""

SAMPLES = 2
SAMPLE_TOKENS = 32768
"""Without text the teacher writes so many batches of so many tokens to begin with."""


def training_windows(
    teacher: Checkpoint,
    texts: Sequence[str] | None,
    *,
    window: int,
    seed: int,
    threads: int = 0,
    progress: Progress = silent,
) -> tuple[Windows, Windows]:
    """Windows to train on, [windows, tokens], and those held out.

    Held out is what no calibration reads, if there is enough of it, see ``hold_out``.

    Raises
    ------
    DataError
        The text does not fill two windows.
    """
    if texts is None:
        texts = [
            text
            for batch in range(SAMPLES)
            for text in sample_calibration(
                teacher,
                tokens=SAMPLE_TOKENS,
                seed=seed + batch,
                threads=threads,
                progress=progress,
            )
        ]
    read, ends = hold_out(texts)
    found = make_windows(teacher, read, tokens=MAX_TOKENS, seed=seed, window=window)
    if sum(map(len, ends)) > HELD_OUT * window:
        held_out = make_windows(teacher, ends, tokens=HELD_OUT_TOKENS, seed=seed, window=window)
        if held_out.shape[1] == found.shape[1]:
            return found, held_out
    if len(found) < 2:
        raise DataError(f"recover: the text does not fill two windows of {window} tokens")
    count = max(1, min(HELD_OUT_TOKENS // window, len(found) // HELD_OUT))
    return found[count:], found[:count]


def next_tokens(windows: Windows) -> Windows:
    """The token that follows each, [windows, tokens]; -1 after the last of a window."""
    return np.pad(windows[:, 1:], ((0, 0), (0, 1)), constant_values=-1)

"""Repair of a model that has lost channels of its residual stream.

What writes to the stream writes to the channels that stay what it always did. What reads it misses
those that went, and the length that norms divide by is that of the others alone. Both are made up
for where the stream is read: the whole input is regressed on the narrow one, both as the dense
model has them, and the regression is folded into the matrices that read it. A regression says less
than there was, and what says a little less at every place says far too little in the end: so each
row is scaled until what it reads is as strong as it was.
"""

from __future__ import annotations

import functools
import operator

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint
from slimformer.engine import Moments
from slimformer.progress import Progress, silent
from slimformer.prune.channels.reading import places, readers
from slimformer.prune.evidence import check_evidence, gather
from slimformer.prune.outputs import normed
from slimformer.prune.refit import choose
from slimformer.prune.stream import Hidden, Windows, precision
from slimformer.prune.windows import in_parts

Array = npt.NDArray[np.float64]

PARTS = 4
"""Parts of the text, of which the last is held out when a damping is chosen."""

FIRST_DAMPING = 0.1
"""Where the search for it begins, near where it ends on eight thousand tokens."""


def repair_narrow(
    dense: Checkpoint,
    narrow: Checkpoint,
    channels: tuple[int, ...],
    windows: Windows,
    *,
    threads: int = 0,
    progress: Progress = silent,
) -> Checkpoint:
    """New weights for all that reads the stream of ``narrow``.

    A head that is tied to the embedding stays what it is, and so do diagonal links, which read
    each channel by itself.

    Parameters
    ----------
    dense, narrow
        The model before and after surgery that removed channels, and nothing else.
    channels
        Those that stayed.
    windows
        Calibration tokens, [windows, tokens].

    Raises
    ------
    DataError
        Activations on the text that are not finite.
    """
    kept = np.asarray(channels)
    selection = np.eye(dense.config.n_channels)[:, kept]
    parts = in_parts(windows, PARTS)
    ends = np.cumsum([len(part) for part in parts])
    stored = {}
    for place, stream in places(dense, np.concatenate(parts), threads, progress):
        names, norm = readers(dense, place)
        if not place and dense.config.tied_head:
            continue
        if any(len(dense.tensors[name].shape) == 1 for name in names):
            continue
        wanted = _input(dense, norm, stream)
        given = _input(narrow, norm, np.ascontiguousarray(stream[..., kept]))
        evidence = [
            gather(*pair, products=precision(dense), threads=threads)[0]
            for pair in zip(np.split(given, ends[:-1]), np.split(wanted, ends[:-1]), strict=True)
        ]
        check_evidence(place, *evidence)
        # What the kept channels say of all, [dense channels, kept channels].
        said = choose(evidence, selection, first=FIRST_DAMPING).weight
        before = _second_moment(wanted, threads)
        after = functools.reduce(operator.add, evidence).gram
        for name in names:
            matrix = dense.read_f32(name).astype(np.float64)
            folded = matrix @ said
            folded *= np.sqrt(_strength(matrix, before) / _strength(folded, after))[:, None]
            if name.endswith("link.weight"):  # writes the stream, too
                folded = folded[kept]
            stored[name] = folded.astype(DTYPES[narrow.tensors[name].dtype])
    return narrow.with_tensors(stored)


def _input(checkpoint: Checkpoint, norm: str, stream: Hidden) -> Hidden:
    """What the matrices behind a norm read; the stream itself where there is none."""
    return normed(checkpoint, norm, stream) if f"{norm}.weight" in checkpoint.tensors else stream


def _second_moment(values: Hidden, threads: int) -> Array:
    """Sum of x x' of [windows, tokens, width], [width, width]."""
    moments = Moments(values.shape[-1], gram=True, threads=threads)
    moments.update(values.reshape(-1, values.shape[-1]))
    return moments.gram


def _strength(matrix: Array, second_moment: Array) -> Array:
    """Sum of squares of what each row of a matrix reads, [rows]; 1 where that is nothing."""
    squares = np.einsum("rc,rc->r", matrix @ second_moment, matrix)
    return np.where(squares > 0, squares, 1.0)

"""The order in which training reads text, without an end.

Text runs out sooner than time does: two processor cores read a million tokens in an hour. Each time
it is read it teaches less, as the student knows it; so the teacher then writes on from where its
windows begin, something else each time.
"""

from __future__ import annotations

import functools

import numpy as np

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.engine import Engine
from slimformer.prune.sample import SEQUENCES, write_on, writing_engine
from slimformer.prune.stream import Windows
from slimformer.train.windows import next_tokens

READINGS = 3
"""How often text is read before the teacher writes on. Writing takes a fifth of the time, and what
is written teaches less than text does: to 135 million parameters pruned to 0.8, 49,152 tokens read
three times in nine minutes gave as much as 98,304 that were new, and writing on after the first
reading gave a tenth less. The more text, the less a second reading gives: at 0.7 that of 480,000
tokens took perplexity down by a hundredth, and stopped by itself where held-out text gained nothing
any more."""

BEGINNING = 0.25
"""Share of a window that is the text's own before the teacher writes on: enough to keep to its
subject and its manner, little enough that most of it is new."""


class TeacherWriter:
    """The teacher's own continuations (Kim and Rush 2016, arXiv 1606.07947, sampled)."""

    def __init__(self, teacher: Checkpoint, threads: int) -> None:
        self._teacher = teacher
        self._threads = threads

    @functools.cached_property
    def _engine(self) -> Engine:
        """Made when text first runs out: many a recovery ends before."""
        return writing_engine(self._teacher, self._threads)

    def write_on(self, windows: Windows, seed: tuple[int, ...]) -> Windows:
        """Windows of the same shape that begin in the same way, [windows, tokens]."""
        length = windows.shape[1]
        known = max(1, round(BEGINNING * length))
        beginnings = windows[:, :known].tolist()
        rng = np.random.default_rng(seed)
        texts = write_on(self._engine, beginnings, length - known, rng)
        return np.asarray(texts, dtype=np.int32)


class Feed:
    """Windows without end: all in an order that the seed decides, again and again in another.

    Parameters
    ----------
    windows
        [windows, tokens].
    writer
        Makes new text of them when they have been read ``READINGS`` times; without one they are
        read as they are.
    """

    def __init__(self, windows: Windows, seed: int, writer: TeacherWriter | None = None) -> None:
        self._windows = windows
        self._seed = seed
        self._writer = writer
        self._block: tuple[int, int] | None = None  # what was written last, by epoch and place
        self._written = windows[:0]

    def batch(self, first: int, count: int) -> tuple[Windows, Windows]:
        """``count`` windows from the ``first`` of the endless order on, [count, tokens].

        Returns
        -------
        The windows, and the token that follows each: -1 where none does, and in what the teacher
        wrote, for that is one draw from predictions which are known whole.
        """
        places = range(first, first + count)
        windows = np.concatenate([self._window(place) for place in places])
        labels = next_tokens(windows)
        labels[[self._is_written(place) for place in places]] = -1
        return windows, labels

    @property
    def text_tokens(self) -> int:
        """Tokens of the text, which are all new in the first reading."""
        return self._windows.size

    def written(self, count: int) -> int:
        """How many tokens of the first ``count`` windows are from the writer's hand."""
        length: int = self._windows.shape[1]
        return sum(map(self._is_written, range(count))) * length

    def _is_written(self, place: int) -> bool:
        return self._writer is not None and place >= READINGS * len(self._windows)

    def _window(self, place: int) -> Windows:
        """One window, [1, tokens]."""
        epoch, within = divmod(place, len(self._windows))
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._windows))
        if self._writer is None or not self._is_written(place):
            return self._windows[order[within : within + 1]]
        block, within = divmod(within, SEQUENCES)
        if self._block != (epoch, block):
            read = self._windows[order[block * SEQUENCES : (block + 1) * SEQUENCES]]
            self._written = self._writer.write_on(read, (self._seed, epoch, block))
            self._block = (epoch, block)
        return self._written[within : within + 1]

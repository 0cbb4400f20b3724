"""How well a model predicts running text."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slimformer.errors import ConfigError, DataError, StorageError
from slimformer.progress import Progress, silent

if TYPE_CHECKING:
    from slimformer.engine import Engine, Mask

BATCH_TOKENS = 4096
"""Tokens scored in one pass: enough to fill a GEMM, few enough to report progress."""

LARGEST_EXPONENT = 700.0
"""``exp`` of more than this does not fit a float64."""


@dataclasses.dataclass(frozen=True)
class TextResult:
    """How well a model predicted one text.

    ``tokens`` counts those that were scored; ``nats_per_token`` is their mean negative log
    likelihood; ``bits_per_byte`` spreads it over the bytes of the text, so that models with
    different tokenizers compare.
    """

    tokens: int
    windows: int
    nats_per_token: float
    bits_per_byte: float

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean negative log likelihood; infinite where that overflows."""
        if self.nats_per_token > LARGEST_EXPONENT:
            return math.inf
        return math.exp(self.nats_per_token)


def read_text(path: str | os.PathLike[str]) -> str:
    """The contents of a UTF-8 text file.

    Raises
    ------
    StorageError
        The file cannot be read.
    DataError
        It is not UTF-8, or there is nothing in it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, found {error.reason}") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    if not text.strip():
        raise DataError(f"{path}: expected text, found an empty file")
    return text


def evaluate_text(
    engine: Engine,
    text: str,
    *,
    context: int = 2048,
    max_windows: int | None = None,
    mask: Mask | None = None,
    progress: Progress = silent,
) -> TextResult:
    """Perplexity of a text, in windows that do not overlap.

    The text is tokenised as one stream and cut into windows of ``context`` tokens, or of the
    model's limit where that is less; every token is scored but the first of its window. A
    shorter window at the end counts if it has two tokens.

    Parameters
    ----------
    engine
        A model with a tokenizer.
    text
        What to predict.
    context
        Tokens in a window, 2 at least.
    max_windows
        Stop after so many windows.
    mask
        Run with parts of the model switched off.
    progress
        Told after every batch of windows.

    Raises
    ------
    DataError
        The text has fewer than two tokens.
    ConfigError
        ``context`` is below 2, ``max_windows`` is below 1, or there is no tokenizer.
    """
    if context < 2:
        raise ConfigError(f"context: expected 2 tokens at least, found {context}")
    if max_windows is not None and max_windows < 1:
        raise ConfigError(f"max_windows: expected 1 at least, found {max_windows}")
    if engine.tokenizer is None:
        raise ConfigError("the model has no tokenizer, so no text can be evaluated")
    ids = engine.tokenizer.encode(text)
    windows = split_windows(ids, min(context, engine.config.max_positions), max_windows)
    if not windows:
        raise DataError(f"text: expected two tokens at least, found {len(ids)}")

    nats, scored, done = 0.0, 0, 0
    for batch in _batches(windows):
        for scores in engine.score(batch, mask=mask):
            nats -= float(scores.sum(dtype="float64"))
            scored += len(scores)
        done += len(batch)
        progress("perplexity", done, len(windows))

    covered = sum(len(window) for window in windows)
    covered_text = text if covered == len(ids) else engine.tokenizer.decode(ids[:covered])
    # The first token of a window has no score; it is taken to cost what the others do.
    nats_of_text = nats / scored * covered
    return TextResult(
        tokens=scored,
        windows=len(windows),
        nats_per_token=nats / scored,
        bits_per_byte=nats_of_text / math.log(2) / max(1, len(covered_text.encode())),
    )


def split_windows(ids: Sequence[int], size: int, limit: int | None) -> list[Sequence[int]]:
    """Consecutive windows of ``size`` ids; the last may be shorter, but not of one id."""
    windows = [ids[start : start + size] for start in range(0, len(ids), size)]
    if windows and len(windows[-1]) < 2:
        windows.pop()
    return windows[:limit]


def _batches(windows: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Runs of windows of at most ``BATCH_TOKENS`` tokens, one window at least."""
    batch: list[Sequence[int]] = []
    tokens = 0
    for window in windows:
        if batch and tokens + len(window) > BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(window)
        tokens += len(window)
    if batch:
        yield batch

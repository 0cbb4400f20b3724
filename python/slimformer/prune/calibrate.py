"""Calibration text: from files or from the model itself, cut into windows of tokens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.errors import DataError
from slimformer.progress import Progress
from slimformer.prune.framed_windows import framed_windows
from slimformer.prune.sample import sample_calibration
from slimformer.prune.stream import Windows
from slimformer.tokenizer import Tokenizer

WINDOW = 512
"""Tokens in a calibration window."""

SUFFIXES = (".txt", ".jsonl")

HELD_OUT = 16
"""One part in so many of the texts is not calibrated on, so that a recovery on the same texts can
be judged on what the closed-form repair has not seen either."""

LEAST_END = 4096
"""Characters of an end that is held out at least, about two windows; of texts that are too short
for that whole ones are held out."""

CHARACTERS_PER_TOKEN = 16
"""Characters of a text that are tokenised for each token wanted; most text has 3 to 5."""


def load_calibration(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Read calibration text, one string for each file.

    Parameters
    ----------
    paths
        Text files (``.txt``), files of one JSON object a line with a ``text`` (``.jsonl``), or
        folders of them (searched in depth, in the order of their names).

    Raises
    ------
    DataError
        A path that does not exist, holds no such file, cannot be decoded or has no text.
    """
    texts = [_read(file) for path in paths for file in _files(Path(path))]
    if not texts:
        raise DataError("calibration: no paths given")
    return texts


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
        if not files:
            raise DataError(f"calibration: {path} holds no {' or '.join(SUFFIXES)} file")
        return files
    if not path.is_file():
        raise DataError(f"calibration: no file or folder {path}")
    return [path]


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"calibration: cannot read {path}: {error}") from error
    if path.suffix == ".jsonl":
        text = "\n\n".join(
            _document(path, number, line)
            for number, line in enumerate(text.splitlines(), start=1)
            if line.strip()
        )
    if not text.strip():
        raise DataError(f"calibration: {path} has no text")
    return text


def _document(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"calibration: {path}, line {number}: not JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise DataError(
            f"calibration: {path}, line {number}: expected an object with a text 'text'"
        )
    return str(value["text"])


def calibration_windows(
    checkpoint: Checkpoint,
    texts: Sequence[str] | None,
    tokens: int,
    seed: int,
    threads: int,
    progress: Progress,
) -> Windows:
    """Windows of the user's texts but for what is held out, or of some that the model writes.

    Raises
    ------
    DataError
        There are no texts, and the model is an encoder; or they cannot be used.
    """
    if texts is None and not checkpoint.config.causal:
        raise DataError(f"{checkpoint.name}: an encoder writes no text; give some to calibrate on")
    if texts is None:
        texts = sample_calibration(checkpoint, seed=seed, threads=threads, progress=progress)
    return make_windows(checkpoint, hold_out(texts)[0], tokens=tokens, seed=seed)


def hold_out(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Text to read, and text that is held out: the end of each long one, some of the short ones."""
    read: list[str] = []
    held_out: list[str] = []
    short = 0
    for text in texts:
        end = len(text) // HELD_OUT
        if end >= LEAST_END:
            read.append(text[:-end])
            held_out.append(text[-end:])
        else:
            short += 1
            (read if short % HELD_OUT else held_out).append(text)
    return read, held_out


def make_windows(
    checkpoint: Checkpoint, texts: Sequence[str], *, tokens: int, seed: int, window: int = WINDOW
) -> Windows:
    """Cut texts into windows, [windows, window], of about ``tokens`` tokens in all.

    The windows are drawn evenly from all texts, from random places without overlap; texts that
    are shorter than a window are first joined with their neighbours. Fewer come back where the
    texts have no more, and one shorter window where they do not fill a single one. None is longer
    than the model can hold. A window begins with the beginning-of-sequence token where the model
    asks for it. Those of an encoder are short texts in their frames, see ``framed_windows``.

    Raises
    ------
    DataError
        The model has no tokenizer, or the texts hold fewer than two tokens.
    """
    assets = checkpoint.tokenizer
    if assets is None:
        raise DataError(f"{checkpoint.name} has no tokenizer, so it cannot read calibration text")
    tokenizer = Tokenizer(assets)
    window = min(window, checkpoint.config.max_positions)
    rng = np.random.default_rng(seed)
    if not checkpoint.config.causal:
        return framed_windows(
            tokenizer,
            texts,
            tokens=tokens,
            longest=window,
            characters_per_token=CHARACTERS_PER_TOKEN,
            rng=rng,
        )
    start = [tokenizer.bos_id] if assets.add_bos and tokenizer.bos_id is not None else []
    body = window - len(start)
    wanted = max(1, tokens // window)
    streams = _streams(tokenizer, texts, body, tokens * CHARACTERS_PER_TOKEN, rng)
    queues = [_cut(stream, body, rng) for stream in streams]
    rng.shuffle(queues)
    chosen: list[list[int]] = []
    while len(chosen) < wanted and any(queues):
        for queue in queues:
            if queue and len(chosen) < wanted:
                chosen.append(start + queue.pop())
    return np.asarray(chosen, dtype=np.int32)


def _streams(
    tokenizer: Tokenizer, texts: Sequence[str], body: int, characters: int, rng: np.random.Generator
) -> list[list[int]]:
    """Token streams of at least ``body`` tokens, or a single shorter one."""
    streams: list[list[int]] = []
    pending: list[int] = []
    for text in texts:
        begin = int(rng.integers(0, max(1, len(text) - characters + 1)))
        pending += tokenizer.encode(text[begin : begin + characters], add_bos=False)
        if len(pending) >= body:
            streams.append(pending)
            pending = []
    if not streams:
        if len(pending) < 2:
            raise DataError("calibration: the text has fewer than two tokens; give more text")
        return [pending]
    streams[-1] += pending
    return streams


def _cut(stream: list[int], body: int, rng: np.random.Generator) -> list[list[int]]:
    """Stretches of ``body`` tokens in random order."""
    places = rng.permutation(max(1, len(stream) // body))
    return [stream[int(place) * body : (int(place) + 1) * body] for place in places]

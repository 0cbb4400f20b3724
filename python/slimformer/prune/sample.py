"""Calibration text where the user has none: sampled from the dense model itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.engine import Engine
from slimformer.errors import DataError
from slimformer.progress import Progress, silent
from slimformer.tokenizer import Tokenizer

SAMPLED_TOKENS = 32768
"""Tokens that are sampled by default; decoding is many times slower than reading text."""

SEQUENCES = 64
"""Sequences that are sampled side by side, so that a step reads the weights once for all."""

BLOCK = 256
"""Entries of the vocabulary whose probabilities are summed before those of all blocks are."""

_cache: dict[tuple[str, int, int], list[str]] = {}


def sample_calibration(
    checkpoint: Checkpoint,
    *,
    tokens: int = SAMPLED_TOKENS,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> list[str]:
    """Text that the model writes by itself, about ``tokens`` tokens in all.

    Every sequence starts with another token drawn from the vocabulary and is sampled at
    temperature 1 (Liu et al. 2023, LLM-QAT, arXiv 2305.17888). The same model, seed and amount
    give the same text; it is kept for the life of the process.

    Raises
    ------
    DataError
        The model has no tokenizer.
    """
    key = (checkpoint.fingerprint, seed, tokens)
    if key not in _cache:
        _cache[key] = _sample(checkpoint, tokens, seed, threads, progress)
    return list(_cache[key])


def _sample(
    checkpoint: Checkpoint, tokens: int, seed: int, threads: int, progress: Progress
) -> list[str]:
    if checkpoint.tokenizer is None:
        raise DataError(f"{checkpoint.name} has no tokenizer, so it cannot write calibration text")
    tokenizer = Tokenizer(checkpoint.tokenizer)
    rng = np.random.default_rng(seed)
    steps = min(max(2, -(-tokens // SEQUENCES)), checkpoint.config.max_positions - 1)
    start = [tokenizer.bos_id] if tokenizer.bos_id is not None else []
    sequences = [[*start, token] for token in _first_tokens(tokenizer, rng)]
    engine = writing_engine(checkpoint, threads)
    told = functools.partial(progress, "sample calibration text")
    return [tokenizer.decode(text) for text in write_on(engine, sequences, steps, rng, told)]


def writing_engine(checkpoint: Checkpoint, threads: int) -> Engine:
    """The model as it writes fastest: what is sampled is random anyhow."""
    return Engine(checkpoint, weights="int8", threads=threads)


def write_on(
    engine: Engine,
    beginnings: Sequence[Sequence[int]],
    steps: int,
    rng: np.random.Generator,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[int]]:
    """Texts that begin like this, each with ``steps`` tokens more, sampled at temperature 1.

    Parameters
    ----------
    beginnings
        Tokens of each text, one at least; they are sampled side by side.
    told
        Told of each step, and of the last one when it is done.
    """
    sequences = [list(beginning) for beginning in beginnings]
    sessions = [engine.session_for(len(sequence) + steps) for sequence in sequences]
    fed = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
    for step in range(steps):
        told(step, steps)
        drawn = draw(engine.forward(sessions, fed, logits="last"), rng)
        for sequence, token in zip(sequences, drawn, strict=True):
            sequence.append(token)
        fed = [np.asarray([token], dtype=np.int32) for token in drawn]
    told(steps, steps)
    return sequences


def _first_tokens(tokenizer: Tokenizer, rng: np.random.Generator) -> list[int]:
    """Different tokens that are text, one a sequence."""
    order = rng.permutation(tokenizer.vocab_size)
    text = (int(token) for token in order if tokenizer.decode([int(token)]).strip())
    chosen = [token for token, _ in zip(text, range(SEQUENCES), strict=False)]
    if not chosen:
        raise DataError("the tokenizer knows no token that is text")
    return [chosen[i % len(chosen)] for i in range(SEQUENCES)]


def draw(logits: npt.NDArray[np.float32], rng: np.random.Generator) -> list[int]:
    """One token from each row's softmax.

    Sums of blocks are summed up before the entries of one block are: two steps of a few hundred
    additions in float64 instead of one a token of the vocabulary.
    """
    drawn = []
    starts = np.arange(0, logits.shape[1], BLOCK)
    for row, uniform in zip(logits, rng.random(len(logits)), strict=True):
        weights = np.exp(row - row.max())
        blocks = np.add.reduceat(weights, starts, dtype=np.float64).cumsum()
        threshold = uniform * blocks[-1]
        block = int(np.searchsorted(blocks, threshold, side="right"))
        before = blocks[block - 1] if block else 0.0
        within = before + weights[starts[block] :][:BLOCK].cumsum(dtype=np.float64)
        token = int(starts[block] + np.searchsorted(within, threshold, side="right"))
        drawn.append(min(token, len(row) - 1))  # sums in another order differ in their last bits
    return drawn

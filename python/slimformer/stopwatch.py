"""How long one sequence takes on an engine."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from slimformer.engine import Engine

SHORT_PROMPT = 16
"""Tokens before the decoded ones."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a prompt up to the logits of its last token, and of the tokens after it."""

    prefill: float
    decode: float


def time_sequence(engine: Engine, prompt: int, generate: int) -> Times:
    """Time one sequence: ``prompt`` tokens, then ``generate`` greedy ones that nothing ends."""
    ids = some_tokens(engine.config.vocab_size, prompt)
    session = engine.session(capacity=prompt + generate)
    start = time.perf_counter()
    logits = session.extend(ids)
    prefilled = time.perf_counter()
    for _ in range(generate):
        logits = session.extend([int(logits.argmax())])
    return Times(prefilled - start, time.perf_counter() - prefilled)


def some_tokens(vocab_size: int, count: int, *, seed: int = 0) -> list[int]:
    """Token ids from anywhere in the vocabulary, the same for the same seed."""
    return [int(token) for token in np.random.default_rng(seed).integers(0, vocab_size, count)]

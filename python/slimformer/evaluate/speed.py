"""Speed of models side by side: prefill and decode, interleaved."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from slimformer.config import AttentionConfig, ModelConfig
from slimformer.errors import ConfigError
from slimformer.progress import Progress, silent

if TYPE_CHECKING:
    from slimformer.engine import Engine

SHORT_PROMPT = 16
"""Tokens before the decoded ones."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, least and largest of repeated measurements."""

    median: float
    minimum: float
    maximum: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """The spread of one value or more."""
        return Spread(statistics.median(values), min(values), max(values))


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model that takes part, under the name that results go by."""

    name: str
    engine: Engine


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast one model is.

    ``prefill`` and ``decode`` are in tokens per second, with batch 1. The ratios are medians
    of the pairwise ratios to the first model of the same round. ``prefill_gflops`` counts
    multiplications and additions of matrices and attention; ``decode_gb_per_s`` counts the
    weights that a token reads.
    """

    name: str
    prefill: Spread
    decode: Spread
    prefill_ratio: float
    decode_ratio: float
    prefill_gflops: float
    decode_gb_per_s: float


def measure_speed(
    contenders: Sequence[Contender],
    *,
    prompt: int = 512,
    generate: int = 128,
    repeat: int = 5,
    progress: Progress = silent,
) -> list[Speed]:
    """Time prefill and greedy decode of several models, in turn.

    Every model warms up once; then each round times every model once, so that a drift of the
    machine meets all of them. Prefill runs ``prompt`` tokens to the logits of the last one;
    decode makes ``generate`` tokens after a prompt of 16.

    Parameters
    ----------
    contenders
        The models; ratios are to the first.
    prompt, generate
        Numbers of tokens, 1 at least.
    repeat
        Rounds, 1 at least.
    progress
        Told after every timing.

    Raises
    ------
    ConfigError
        A number is below 1, or beyond a model's limit.
    """
    for name, value in (("prompt", prompt), ("generate", generate), ("repeat", repeat)):
        if value < 1:
            raise ConfigError(f"{name}: expected 1 at least, found {value}")
    for contender in contenders:
        limit = contender.engine.config.max_positions
        if max(prompt, SHORT_PROMPT + generate) > limit:
            raise ConfigError(
                f"{contender.name}: prompt {prompt} and {SHORT_PROMPT} + {generate} tokens: "
                f"expected {limit} at most"
            )
    total = (repeat + 1) * len(contenders)
    prefill: list[list[float]] = []
    decode: list[list[float]] = []
    for number in range(repeat + 1):
        prefill.append([])
        decode.append([])
        for index, contender in enumerate(contenders):
            prefill[-1].append(time_prefill(contender.engine, prompt))
            decode[-1].append(time_decode(contender.engine, generate))
            progress("speed", number * len(contenders) + index + 1, total)
    prefill, decode = prefill[1:], decode[1:]
    results = []
    for index, contender in enumerate(contenders):
        prefill_seconds = [seconds[index] for seconds in prefill]
        decode_seconds = [seconds[index] for seconds in decode]
        config = contender.engine.config
        token_seconds = statistics.median(decode_seconds) / generate
        results.append(
            Speed(
                name=contender.name,
                prefill=Spread.of([prompt / seconds for seconds in prefill_seconds]),
                decode=Spread.of([generate / seconds for seconds in decode_seconds]),
                prefill_ratio=statistics.median(row[0] / row[index] for row in prefill),
                decode_ratio=statistics.median(row[0] / row[index] for row in decode),
                prefill_gflops=prefill_flops(config, prompt)
                / statistics.median(prefill_seconds)
                / 1e9,
                decode_gb_per_s=decode_bytes(contender.engine) / token_seconds / 1e9,
            )
        )
    return results


def time_prefill(engine: Engine, prompt: int) -> float:
    """Seconds from a prompt of so many tokens to the logits of its last."""
    ids = _some_tokens(engine.config.vocab_size, prompt)
    session = engine.session(capacity=prompt)
    start = time.perf_counter()
    session.extend(ids)
    return time.perf_counter() - start


def time_decode(engine: Engine, generate: int) -> float:
    """Seconds for so many greedy tokens after a short prompt; no token ends it early."""
    ids = _some_tokens(engine.config.vocab_size, SHORT_PROMPT)
    session = engine.session(capacity=SHORT_PROMPT + generate)
    token = int(session.extend(ids).argmax())
    start = time.perf_counter()
    for _ in range(generate):
        token = int(session.extend([token]).argmax())
    return time.perf_counter() - start


def prefill_flops(config: ModelConfig, tokens: int) -> float:
    """Multiplications and additions of a prefill, the head on the last token only."""
    flops = 2.0 * tokens * config.non_embedding_parameters()
    flops += 2.0 * config.vocab_size * config.n_channels
    pairs = tokens * (tokens + 1) / 2
    for layer in config.layers:
        if isinstance(layer.attention, AttentionConfig):
            width = layer.attention.head_dim + layer.attention.value_dim
            flops += 2.0 * pairs * layer.attention.n_heads * width
    return flops


def decode_bytes(engine: Engine) -> float:
    """Bytes of weights that one decoded token reads: all but an embedding of its own."""
    config = engine.config
    unread = 0 if config.tied_head else config.vocab_size * config.n_channels
    return engine.weight_bytes * (1 - unread / config.parameters())


def _some_tokens(vocab_size: int, count: int) -> list[int]:
    """Token ids from anywhere in the vocabulary, the same at every call."""
    return [int(token) for token in np.random.default_rng(0).integers(0, vocab_size, count)]

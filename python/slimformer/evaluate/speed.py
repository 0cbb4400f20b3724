"""Speed of models side by side: prefill and decode, interleaved."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from slimformer.config import AttentionConfig, ModelConfig
from slimformer.errors import ConfigError
from slimformer.progress import Progress, silent
from slimformer.stopwatch import SHORT_PROMPT, Times, time_sequence

if TYPE_CHECKING:
    from slimformer.engine import Engine


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


class Runner(Protocol):
    """Whatever takes part in a comparison, under the name that results go by."""

    @property
    def name(self) -> str:
        """What results call it."""

    @property
    def max_positions(self) -> int:
        """Tokens of a sequence at most."""

    def run(self, prompt: int, generate: int) -> Times:
        """One sequence: ``prompt`` tokens, then ``generate`` greedy ones that nothing ends."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One of our own models that takes part."""

    name: str
    engine: Engine

    @property
    def max_positions(self) -> int:
        """See Runner."""
        return self.engine.config.max_positions

    def run(self, prompt: int, generate: int) -> Times:
        """See Runner."""
        return time_sequence(self.engine, prompt, generate)


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast one model is.

    ``prefill`` and ``decode`` are in tokens per second, with batch 1. The ratios are medians
    of the pairwise ratios to the first model of the same round. ``prefill_gflops`` counts
    multiplications and additions of matrices and attention; ``decode_gb_per_s`` counts the
    weights that a token reads; both are ``None`` for another engine.
    """

    name: str
    prefill: Spread
    decode: Spread
    prefill_ratio: float
    decode_ratio: float
    prefill_gflops: float | None
    decode_gb_per_s: float | None


def run_rounds(
    runners: Sequence[Runner],
    *,
    prompt: int,
    generate: int,
    repeat: int,
    progress: Progress = silent,
    what: str = "speed",
) -> list[list[Times]]:
    """Times of every runner, one list a round.

    Everyone warms up once; then each round times everyone once, so that a machine that drifts
    drifts for all.
    """
    rounds: list[list[Times]] = []
    for number in range(repeat + 1):
        rounds.append([])
        for index, runner in enumerate(runners):
            rounds[-1].append(runner.run(prompt, generate))
            progress(what, number * len(runners) + index + 1, (repeat + 1) * len(runners))
    return rounds[1:]


def measure_speed(
    contenders: Sequence[Runner],
    *,
    prompt: int = 512,
    generate: int = 128,
    repeat: int = 5,
    progress: Progress = silent,
) -> list[Speed]:
    """Time prefill and greedy decode of several models, in turn.

    Prefill runs ``prompt`` tokens to the logits of the last one; decode makes ``generate``
    tokens after a prompt of 16.

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
        limit = contender.max_positions
        if max(prompt, SHORT_PROMPT + generate) > limit:
            raise ConfigError(
                f"{contender.name}: prompt {prompt} and {SHORT_PROMPT} + {generate} tokens: "
                f"expected {limit} at most"
            )
    prefill, decode = (
        run_rounds(
            contenders,
            prompt=tokens,
            generate=more,
            repeat=repeat,
            progress=progress,
            what=what,
        )
        for what, tokens, more in (("prefill", prompt, 0), ("decode", SHORT_PROMPT, generate))
    )
    results = []
    for index, contender in enumerate(contenders):
        prefill_seconds = [times[index].prefill for times in prefill]
        decode_seconds = [times[index].decode for times in decode]
        gflops = gbytes = None
        if isinstance(contender, Contender):
            flops = prefill_flops(contender.engine.config, prompt)
            gflops = flops / statistics.median(prefill_seconds) / 1e9
            read = decode_bytes(contender.engine) * generate
            gbytes = read / statistics.median(decode_seconds) / 1e9
        results.append(
            Speed(
                name=contender.name,
                prefill=Spread.of([prompt / seconds for seconds in prefill_seconds]),
                decode=Spread.of([generate / seconds for seconds in decode_seconds]),
                prefill_ratio=statistics.median(
                    times[0].prefill / times[index].prefill for times in prefill
                ),
                decode_ratio=statistics.median(
                    times[0].decode / times[index].decode for times in decode
                ),
                prefill_gflops=gflops,
                decode_gb_per_s=gbytes,
            )
        )
    return results


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

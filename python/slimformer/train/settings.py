"""What a recovery is asked for, and what it tells while it runs. No PyTorch here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.errors import ConfigError

RELATIVE_RATE = 5e-4
"""Learning rate as a share of the weights' size, the median of the matrices' root mean squares: a
step of AdamW moves every weight by the rate, however large it is (Shazeer and Stern 2018, arXiv
1804.04235). What a refit has left is close to a minimum already. smollm2-135m, whose weights are
0.19 in size, at 0.8: half a million tokens at 1e-4 in steps of 1024 take the divergence on held-out
text from 0.373 to 0.293; at three times the rate to 0.311. gemma3-270m, 0.04 in size: 12,288 tokens
at 2e-5 take the loss from 2.223 to 2.127; twice as many at 1e-4 to 2.213."""

LABELS = 0.5
"""A teacher of 135 million parameters that was trained to answer predicts text worse than it could,
and text itself says so: 98,304 tokens took perplexity on WikiText-2 from 1.37 times that of the
teacher to 1.28 by its predictions alone, to 1.22 with a share of 0.3 and to 1.18 by labels alone;
on the text of LAMBADA, far from what was read, from 1.42 to 1.32, 1.27 and 1.24, and multiple
choice gained most where text did. Half keeps to the teacher where text is little or its own."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long and how to train.

    Parameters
    ----------
    minutes
        Wall-clock time that training may take, its evaluations on held-out text included.
    tokens
        Instead, or as well: tokens to train on. With ``tokens`` alone a seed gives the same bytes
        every time; a clock does not.
    learning_rate
        Highest rate of AdamW, reached after the warm-up and left on half a cosine; ``None`` goes
        by the size of the weights.
    lora
        Rank of low-rank updates that are trained instead of the matrices themselves (Hu et al.
        2021, arXiv 2106.09685) and merged at the end.
    window, batch
        Tokens of a sequence, and of a step; a step has whole windows.
    labels
        Share of the text's own next tokens in what the predictions are drawn to, 0 to 1; the rest
        is what the teacher predicts. In text that the teacher has written it counts as 0.
    hidden
        Weight of the residual streams' relative error beside the divergence of the predictions.
    patience
        Evaluations without progress on held-out text after which training goes back to the best
        weights, lets the rate fall within a tenth of the tokens so far, and stops.
    seed
        Of the choice and order of text, and of the low-rank updates.

    Raises
    ------
    ConfigError
        Values out of range, or neither ``minutes`` nor ``tokens``.
    """

    minutes: float | None = None
    tokens: int | None = None
    learning_rate: float | None = None
    lora: int | None = None
    window: int = 512
    batch: int = 1024
    labels: float = LABELS
    hidden: float = 0.1
    patience: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.minutes is None and self.tokens is None:
            raise ConfigError("recover: give minutes or tokens")
        for name in ("minutes", "tokens", "learning_rate", "lora", "patience"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a number above 0, found {value}")
        if self.window < 2:
            raise ConfigError(f"window: expected 2 tokens at least, found {self.window}")
        if self.batch < self.window:
            raise ConfigError(
                f"batch: expected at least one window of {self.window}, found {self.batch}"
            )
        if not 0 <= self.labels <= 1:
            raise ConfigError(f"labels: expected a share of 0 to 1, found {self.labels}")
        if not 0 <= self.hidden < math.inf:
            raise ConfigError(f"hidden: expected 0 or more, found {self.hidden}")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed: expected 0 to 2^63 - 1, found {self.seed}")

    def share(self, tokens: int, seconds: float) -> float:
        """How much of the budget is used up, 0 to 1."""
        by_tokens = 0.0 if self.tokens is None else tokens / self.tokens
        by_time = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return min(1.0, max(by_tokens, by_time))


@dataclasses.dataclass(frozen=True)
class Step:
    """Where a recovery stands.

    ``share`` of the budget, ``loss`` of the last steps, the lowest ``held_out`` loss of predictions
    so far (nats a token), ``seconds_left`` if it goes on like this.
    """

    share: float
    tokens: int
    loss: float
    held_out: float
    tokens_per_second: float
    seconds_left: float


@dataclasses.dataclass(frozen=True)
class Recovery:
    """The recovered model, and what that took.

    Of the ``tokens`` that were read so many were ``written`` by the teacher, because the text of
    ``text_tokens`` had been read. ``before`` and ``after`` are losses of the predictions on
    held-out text, in nats a token: the divergence from the teacher's, and for a share of
    ``Settings.labels`` the cross entropy of what follows.
    """

    checkpoint: Checkpoint
    tokens: int
    written: int
    text_tokens: int
    seconds: float
    before: float
    after: float

    @property
    def readings(self) -> float:
        """How often the text was read."""
        return (self.tokens - self.written) / self.text_tokens


Report = Callable[[Step], None]
"""Told after every step."""


def ignore(step: Step) -> None:
    """Report nothing."""

"""Writing text with a session: sampling, stop tokens, stop strings, whole characters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from slimformer.errors import ConfigError, ContextLengthError, DataError
from slimformer.tokenizer import TextStreamer, Tokenizer

if TYPE_CHECKING:
    from slimformer.engine import Mask, Session


FED_AT_ONCE = 512
"""Tokens of a long prompt that a session with a window is fed at once: as many as the core's passes
take together."""


class GenerationOptions(TypedDict, total=False):
    """The keyword arguments of everything that generates; `GenerationSettings` explains them."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: Sequence[str]
    mask: Mask | None


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """How to choose tokens and when to stop.

    Parameters
    ----------
    max_tokens:
        At most so many new tokens; fewer where the context ends before.
    temperature:
        0 takes the likeliest token, 1 samples from the model's own distribution.
    top_k, top_p, min_p:
        Sample from the ``top_k`` likeliest tokens (0: all), from the smallest set that holds
        probability ``top_p`` (Holtzman et al. 2020), from those with at least ``min_p`` times
        the probability of the likeliest (Nguyen et al. 2024).
    repetition_penalty:
        Above 1 makes tokens that occurred before less likely (Keskar et al. 2019).
    seed:
        Same seed, same text.
    stop:
        Texts that end the generation; they are not part of what is returned.
    mask:
        Structures to leave out; ``None`` runs the whole model.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    mask: Mask | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens: expected at least 1, found {self.max_tokens}")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed: expected 0 to 2^64 - 1, found {self.seed}")
        if not 0 <= self.top_k < 1 << 31:
            raise ConfigError(f"top_k: expected 0 (all) to 2^31 - 1, found {self.top_k}")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ConfigError(f"stop: expected non-empty texts in a list, found {self.stop!r}")


class Sampler(Protocol):
    """Chooses the next token; the core has one."""

    def sample(self, logits: npt.NDArray[np.float32], history: npt.NDArray[np.int32], /) -> int:
        """The token after ``history``, whose logits are [vocab_size]."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Parameters
    ----------
    text:
        The text.
    tokens:
        The ids of its tokens without the stop token.
    out_of_sight:
        Tokens before the last one that it was written without, as they had left the session's
        window; 0 where there is none.
    """

    text: str
    tokens: list[int]
    out_of_sight: int = 0


def generate_ids(
    session: Session,
    longer: Callable[[int], Session],
    sampler: Sampler,
    prompt: Sequence[int],
    max_tokens: int,
    stop_ids: frozenset[int],
) -> Iterator[int]:
    """New token ids one by one, until a stop token, ``max_tokens`` or the context's end.

    A text that outgrows its session goes on in what ``longer`` opens for that many tokens, from
    the beginning.

    Raises
    ------
    DataError
        The prompt is empty.
    ContextLengthError
        The prompt alone does not fit the session.
    """
    if len(prompt) == 0:
        raise DataError("prompt: expected at least one token, found none")
    # What is longer than the context comes to nothing, however many tokens were asked for.
    longest = max(session.engine.config.max_positions, session.capacity)
    history = np.empty(len(prompt) + min(max_tokens, longest), dtype=np.int32)
    history[: len(prompt)] = prompt
    length = len(prompt)
    logits = _feed(session, prompt)
    for _ in range(max_tokens):
        token = sampler.sample(logits, history[:length])
        if token in stop_ids:
            return
        yield token
        history[length] = token
        length += 1
        unseen = history[length - 1 : length]
        if session.position == session.capacity:
            session, unseen = longer(length), history[:length]
        if length > session.capacity:
            return
        if length < len(history):
            logits = session.extend(unseen)


def _feed(session: Session, prompt: Sequence[int]) -> npt.NDArray[np.float32]:
    """The logits after a prompt, fed in pieces where the session has a window.

    What leaves the window is let go after each piece, so that a long prompt takes no more memory
    than the window does.
    """
    if session.window is not None:
        if len(prompt) > session.capacity - session.position:
            raise ContextLengthError(
                f"a prompt of {len(prompt)} tokens is longer than the {session.capacity} positions "
                "of the session"
            )
        while len(prompt) > FED_AT_ONCE:
            session.extend(prompt[:FED_AT_ONCE])
            prompt = prompt[FED_AT_ONCE:]
    return session.extend(prompt)


def generate_text(
    ids: Iterator[int], tokenizer: Tokenizer, stop: Sequence[str], prompt: Sequence[int]
) -> Iterator[tuple[int | None, str]]:
    """Each new id with the text that has become certain with it.

    Text is held back while it may be the beginning of a stop text or of a character; what is
    left at the end comes without an id.
    """
    streamer = TextStreamer(tokenizer, prompt)
    stop_filter = StopFilter(stop)
    for token in ids:
        yield token, stop_filter.push(streamer.push(token))
        if stop_filter.stopped:
            return
    yield None, stop_filter.push(streamer.flush()) + stop_filter.flush()


class StopFilter:
    """Passes text on until one of the stop texts occurs, which may come in pieces."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What may be shown now; nothing more once a stop text has occurred."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back for a stop text that did not come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def collect(pieces: Iterator[tuple[int | None, str]]) -> Completion:
    """All pieces of a text as one."""
    tokens: list[int] = []
    texts: list[str] = []
    for token, text in pieces:
        texts.append(text)
        if token is not None:
            tokens.append(token)
    return Completion("".join(texts), tokens)

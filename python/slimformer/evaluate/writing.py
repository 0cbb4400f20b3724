"""Greedy text of several prompts at once: each step reads the weights once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from slimformer.generation import GenerationOptions, StopFilter
from slimformer.tokenizer import TextStreamer, Tokenizer

if TYPE_CHECKING:
    from slimformer.engine import Engine, Session


class _Text:
    """One text that is being written."""

    def __init__(self, session: Session, tokenizer: Tokenizer, options: GenerationOptions) -> None:
        self.session = session
        self.ids: list[int] = []
        self._limit = options["max_tokens"]
        self._stop_ids = tokenizer.stop_ids
        self._streamer = TextStreamer(tokenizer)
        self._stop = StopFilter(options["stop"])

    def goes_on(self, token: int) -> bool:
        """Take the next token, and tell whether another is wanted."""
        if token in self._stop_ids:
            return False
        self.ids.append(token)
        self._stop.push(self._streamer.push(token))
        full = self.session.position == self.session.capacity
        return not (full or self._stop.stopped or len(self.ids) == self._limit)


def write_greedily(
    engine: Engine, prompts: Sequence[tuple[Sequence[int], GenerationOptions]]
) -> list[list[int]]:
    """New token ids after each prompt, of which ``max_tokens`` and ``stop`` are heeded.

    A stop text is the end of the ids and still in them, and so may be more of its last token.
    """
    assert engine.tokenizer is not None
    texts = [_Text(engine.session(), engine.tokenizer, options) for _, options in prompts]
    writing, fed = texts, [list(prompt) for prompt, _ in prompts]
    while writing:
        logits = engine.forward([text.session for text in writing], fed)
        chosen = logits.argmax(axis=1).tolist()
        going_on = [
            (text, [token])
            for text, token in zip(writing, chosen, strict=True)
            if text.goes_on(token)
        ]
        writing, fed = [text for text, _ in going_on], [token for _, token in going_on]
    return [text.ids for text in texts]

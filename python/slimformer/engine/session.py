"""One running sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slimformer import _core
from slimformer.arrays import Floats, Tokens, as_tokens
from slimformer.engine.choices import out_of_sight

if TYPE_CHECKING:
    from slimformer.engine.engine import Engine


class Session:
    """One running sequence of an engine; `Engine.session` makes them."""

    def __init__(
        self, engine: Engine, core: _core.Session, window: int | None = None, sinks: int = 0
    ) -> None:
        self.engine = engine
        self.window = window
        self.sinks = sinks
        self._core = core

    @property
    def position(self) -> int:
        """Tokens that the session has seen."""
        return self._core.position

    @property
    def capacity(self) -> int:
        """Tokens that it can see at most."""
        return self._core.capacity

    @property
    def out_of_sight(self) -> int:
        """Tokens of its past that its last token did not see; 0 without a window."""
        return out_of_sight(self.position, self.window, self.sinks)

    @property
    def kv_bytes(self) -> int:
        """Bytes of its keys and values, shared pages counted in full."""
        return self._core.kv_bytes

    def fork(self) -> Session:
        """A second sequence with the same past, which both share in memory."""
        return Session(self.engine, self._core.fork(), self.window, self.sinks)

    def rewind(self, position: int) -> None:
        """Forgets everything from ``position`` on.

        Raises
        ------
        DataError
            The session has not come that far, or has let go of what that position sees.
        """
        self._core.rewind(position)

    def extend(self, tokens: Tokens) -> Floats:
        """Feeds tokens; the logits after the last one, float32 [vocab_size]."""
        row: Floats = self.engine.forward([self], [tokens])[0]
        return row

    def score(self, tokens: Tokens) -> Floats:
        """Feeds tokens; log-probability of each but the first, float32 [n_tokens - 1]."""
        return self.engine._packed.score([self._core], [as_tokens(tokens)])[0]

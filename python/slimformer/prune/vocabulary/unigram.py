"""Unigram (SentencePiece): of all ways to cut a text, the one whose pieces score best in sum."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Unigram:
    """The best way to cut a text stays the best when others go.

    Characters keep their pieces: one that lost it would be unknown, or bytes, at another score.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        self._model = model
        self._pieces: list[tuple[str, float]] = [(text, score) for text, score in model["vocab"]]

    def always(self) -> set[int]:
        """Single characters, bytes, the unknown token, and the piece with the lowest score.

        What an unknown character costs is counted from that score.
        """
        found = {
            index
            for index, (text, _) in enumerate(self._pieces)
            if len(text) == 1 or _BYTE_TOKEN.fullmatch(text)
        }
        found.add(min(range(len(self._pieces)), key=lambda index: self._pieces[index][1]))
        unknown = self._model.get("unk_id")
        return found if unknown is None else found | {unknown}

    def parents(self, token: int) -> tuple[int, ...]:
        """None: every piece is found by itself."""
        return ()

    def cut(self, position: Mapping[int, int]) -> dict[str, Any]:
        """The model with the pieces in ``position`` alone, in the order of the ids given there."""
        pieces = [list(piece) for index, piece in enumerate(self._pieces) if index in position]
        unknown = self._model.get("unk_id")
        return {
            **self._model,
            "vocab": pieces,
            "unk_id": None if unknown is None else position[unknown],
        }

"""WordPiece: the longest entry that a word begins with, then the longest that follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class WordPieces:
    """A word is cut from left to right, always at the longest entry.

    An entry that stays is still the longest where it was; a word that needs one that went is cut
    into shorter ones, down to characters.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        self._model = model
        self._ids: Mapping[str, int] = model["vocab"]
        self._prefix: str = model["continuing_subword_prefix"]

    def always(self) -> set[int]:
        """Single characters, and entries with a character that is no entry by itself."""
        unknown = self._model["unk_token"]
        return {
            index
            for text, index in self._ids.items()
            if text == unknown or not self._divisible(text)
        }

    def parents(self, token: int) -> tuple[int, ...]:
        """None: every entry is found by itself."""
        return ()

    def cut(self, position: Mapping[int, int]) -> dict[str, Any]:
        """The model with the tokens in ``position`` alone, under the ids given there."""
        vocabulary = {
            text: position[index]
            for text, index in sorted(self._ids.items(), key=lambda item: item[1])
            if index in position
        }
        return {**self._model, "vocab": vocabulary}

    def _divisible(self, text: str) -> bool:
        """Whether an entry can be written as several single characters."""
        body = text.removeprefix(self._prefix)
        continues = body != text
        characters = [
            (self._prefix if continues or place else "") + character
            for place, character in enumerate(body)
        ]
        return len(body) > 1 and all(character in self._ids for character in characters)

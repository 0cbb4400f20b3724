"""Byte-pair encoding: a token is made of two others, and those of others still."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import pre_tokenizers

from slimformer.errors import UnsupportedModelError

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class BytePairs:
    """Merges by rank, over the bytes of a text or over its characters with bytes to fall back on.

    A merge stays if both its parts and what it makes do. So a text whose tokens all stay, with
    those that they are merged from, is cut as before: every merge that happened is still there,
    and none that did not has become the best.
    """

    def __init__(self, model: Mapping[str, Any], *, byte_level: bool) -> None:
        self._model = model
        self._ids: Mapping[str, int] = model["vocab"]
        self._texts = {index: text for text, index in self._ids.items()}
        self._merges = [_pair(merge) for merge in model["merges"]]
        self._ranks = {pair: rank for rank, pair in enumerate(self._merges)}
        self._byte_level = byte_level
        for setting in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(setting):
                raise UnsupportedModelError(
                    f"tokenizer: the vocabulary of a BPE with a {setting} is not cut here"
                )
        if not byte_level and not model.get("byte_fallback"):
            raise UnsupportedModelError(
                "tokenizer: the vocabulary of a BPE that knows no bytes is not cut here: text "
                "that needs a dropped token could not be written any more"
            )

    def always(self) -> set[int]:
        """The bytes, of which any text can be made, and the unknown token."""
        found = {self._ids[text] for text in self._bytes() if text in self._ids}
        unknown = self._ids.get(self._model.get("unk_token") or "")
        return found if unknown is None else found | {unknown}

    def parents(self, token: int) -> tuple[int, ...]:
        """The two tokens whose merge is the last step to this one; none if no merge makes it."""
        pieces = list(self._texts.get(token, ()))  # added tokens are none of the model's
        while len(pieces) > 2:
            ranks = {
                self._ranks[pair]: at
                for at, pair in reversed(list(enumerate(itertools.pairwise(pieces))))
                if pair in self._ranks
            }
            if not ranks:
                return ()
            at = ranks[min(ranks)]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        if len(pieces) != 2 or (pieces[0], pieces[1]) not in self._ranks:
            return ()
        return self._ids[pieces[0]], self._ids[pieces[1]]

    def cut(self, position: Mapping[int, int]) -> dict[str, Any]:
        """The model with the tokens in ``position`` alone, under the ids given there."""
        vocabulary = {
            text: position[index]
            for text, index in sorted(self._ids.items(), key=lambda item: item[1])
            if index in position
        }
        merges = [
            merge
            for merge, (left, right) in zip(self._model["merges"], self._merges, strict=True)
            if left in vocabulary and right in vocabulary and left + right in vocabulary
        ]
        return {**self._model, "vocab": vocabulary, "merges": merges}

    def _bytes(self) -> list[str]:
        if self._byte_level:
            return list(pre_tokenizers.ByteLevel.alphabet())
        return [text for text in self._ids if _BYTE_TOKEN.fullmatch(text)]


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """The two tokens of a merge; older files join them with a space."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right

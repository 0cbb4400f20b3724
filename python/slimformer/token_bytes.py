"""What each token stands for in bytes: decoding that can stop and go on anywhere.

A token is often less than a character. The two schemes that language models use say exactly
which bytes a token is: byte-level vocabularies write bytes as printable characters, and
SentencePiece ones have a token for each byte that no other entry covers. Joining bytes and
decoding UTF-8 once is the same for a whole text and for a stream; the library's decoders give
up a whole run of byte tokens when the last character in it is unfinished.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "▁"


@dataclasses.dataclass(frozen=True)
class TokenBytes:
    """The bytes of every token of one tokenizer.

    Attributes
    ----------
    tokenizer:
        Gives a token's entry.
    byte_level:
        Whether entries are bytes written as characters, or text with U+2581 for spaces.
    leading_spaces:
        How many spaces that begin a text are not part of it.
    """

    tokenizer: tokenizers.Tokenizer
    byte_level: bool
    leading_spaces: int

    def of(self, token_id: int) -> bytes:
        """The bytes of one token, none for an id beyond the vocabulary."""
        token: str | None = self.tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self.byte_level:
            table = _bytes_of_characters()
            if all(character in table for character in token):
                return bytes(table[character] for character in token)
            return token.encode()
        match = _BYTE_TOKEN.fullmatch(token)
        if match is not None:
            return bytes((int(match[1], 16),))
        return token.replace(_SPACE_MARK, " ").encode()


def token_bytes(tokenizer: tokenizers.Tokenizer) -> TokenBytes | None:
    """The byte view of a tokenizer, ``None`` for one that decodes in another way."""
    if tokenizer.decoder is None:
        return None
    decoder = json.loads(tokenizer.decoder.__getstate__())
    if decoder["type"] == "ByteLevel":
        return TokenBytes(tokenizer, byte_level=True, leading_spaces=0)
    steps = decoder.get("decoders", []) if decoder["type"] == "Sequence" else []
    spaces = sum(step["start"] for step in steps if step["type"] == "Strip")
    if steps and all(map(_is_sentencepiece_step, steps)):
        return TokenBytes(tokenizer, byte_level=False, leading_spaces=spaces)
    return None


def _is_sentencepiece_step(step: Mapping[str, Any]) -> bool:
    """Whether a decoding step is one of those that ``TokenBytes`` does by itself."""
    kind = step["type"]
    if kind == "Replace":
        return bool(step["pattern"] == {"String": _SPACE_MARK} and step["content"] == " ")
    if kind == "Strip":
        return bool(step["content"] == " " and step["stop"] == 0)
    return kind in ("ByteFallback", "Fuse")


@functools.cache
def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, others for U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    table = {chr(value): value for value in printable}
    others = (value for value in range(256) if value not in printable)
    table.update({chr(256 + index): value for index, value in enumerate(others)})
    return table

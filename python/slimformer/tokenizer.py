"""Text to token ids and back, for any model that comes with a tokenizer."""

from __future__ import annotations

import codecs
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tokenizers

from slimformer.checkpoint.checkpoint import TokenizerAssets
from slimformer.errors import DataError, FormatError, TokenError
from slimformer.token_bytes import token_bytes

if TYPE_CHECKING:
    from slimformer.chat_template import ChatTemplate

_LONGEST_CHARACTER = 4
"""Bytes of the longest UTF-8 character, and so the most tokens that one can be split into."""


class Tokenizer:
    """The tokenizer of a model.

    Parameters
    ----------
    assets:
        What the checkpoint knows of it.

    Raises
    ------
    FormatError
        The tokenizer's description is not valid.
    """

    def __init__(self, assets: TokenizerAssets) -> None:
        self._assets = assets
        self._plain = _build(assets)
        self._plain.encode_special_tokens = True
        self.vocab_size: int = self._plain.get_vocab_size(with_added_tokens=True)
        self.bos_id = self._special_id(assets.bos)
        self.eos_id = self._special_id(assets.eos)
        self._bytes = token_bytes(self._plain)
        self._special_ids = frozenset(
            index
            for index, token in self._plain.get_added_tokens_decoder().items()
            if token.special
        )
        self.stop_ids: frozenset[int] = frozenset(assets.stop_ids)

    @functools.cached_property
    def _special(self) -> tokenizers.Tokenizer:
        """A second instance, since whether special tokens are parsed is its state."""
        return _build(self._assets)

    @property
    def chat_template(self) -> str | None:
        """The text of the model's chat template, if it has one."""
        return self._assets.chat_template

    @functools.cached_property
    def _chat_template(self) -> ChatTemplate:
        if self._assets.chat_template is None:
            raise DataError("this model has no chat template; generate without --chat")

        from slimformer.chat_template import ChatTemplate  # slow, and many do without

        return ChatTemplate(
            self._assets.chat_template, bos=self._assets.bos or "", eos=self._assets.eos or ""
        )

    def encode(self, text: str, *, add_bos: bool | None = None, special: bool = False) -> list[int]:
        """Token ids of a text.

        Parameters
        ----------
        text:
            Any text without lone surrogates.
        add_bos:
            Whether to begin with the beginning-of-sequence token; by default as the model
            asks. It is not added to a text that already begins with it.
        special:
            Whether names of special tokens in the text become those tokens, as in the output
            of a chat template, or stay plain text, as what a user typed should.

        Raises
        ------
        DataError
            The text contains surrogates and so is not Unicode text.
        """
        _check_unicode(text)
        tokenizer = self._special if special else self._plain
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        wanted = self._assets.add_bos if add_bos is None else add_bos
        if not wanted or self.bos_id is None or (special and ids[:1] == [self.bos_id]):
            return ids
        return [self.bos_id, *ids]

    def encode_framed(self, text: str, limit: int) -> list[int]:
        """At most ``limit`` token ids of a text, with those that an encoder frames it with.

        Raises
        ------
        DataError
            The text is not valid Unicode.
        """
        _check_unicode(text)
        encoding = self._plain.encode(text, add_special_tokens=True)
        ids: list[int] = encoding.ids
        # The frame stays whole: what goes is the end of the text.
        behind = [*reversed(encoding.special_tokens_mask), 0].index(0)
        end = len(ids) - behind
        return ids[: end - max(0, len(ids) - limit)] + ids[end:]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids; ids of padding rows beyond the vocabulary give nothing.

        Raises
        ------
        TokenError
            An id is negative or no 32-bit number.
        """
        values = [int(value) for value in ids]
        for value in values:
            if not 0 <= value < 1 << 31:
                raise TokenError(f"token id: expected 0 to {self.vocab_size - 1}, found {value}")
        if self._bytes is None:
            text: str = self._plain.decode(values, skip_special_tokens=skip_special)
            return text
        pieces = [
            self._bytes.of(value)
            for value in values
            if not (skip_special and value in self._special_ids)
        ]
        text = b"".join(pieces).decode("utf-8", "replace")
        spaces = len(text) - len(text.lstrip(" "))
        return text[min(spaces, self.leading_spaces) :]

    def texts(self) -> dict[int, str]:
        """The entry of every token, special ones too, as the vocabulary writes it."""
        vocabulary: dict[str, int] = self._plain.get_vocab(with_added_tokens=True)
        return {index: text for text, index in vocabulary.items()}

    def bytes_of(self, token_id: int) -> bytes | None:
        """The bytes that one token adds to a text, none if it is special.

        ``None`` when this tokenizer's text is not simply the bytes of its tokens.
        """
        if self._bytes is None:
            return None
        return b"" if token_id in self._special_ids else self._bytes.of(token_id)

    @property
    def leading_spaces(self) -> int:
        """How many spaces that begin a decoded text are dropped."""
        return self._bytes.leading_spaces if self._bytes is not None else 0

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation in the model's own format.

        Encode it with ``special=True``.

        Parameters
        ----------
        messages:
            Each with a ``role`` (``system``, ``user``, ``assistant``) and a ``content``.
        add_generation_prompt:
            Whether to end where the assistant's answer begins.

        Raises
        ------
        DataError
            The model has no chat template, or the template refuses these messages.
        FormatError
            The template itself is broken.
        """
        return self._chat_template.render(messages, add_generation_prompt=add_generation_prompt)

    def _special_id(self, token: str | None) -> int | None:
        if token is None:
            return None
        index: int | None = self._plain.token_to_id(token)
        if index is None:
            raise FormatError(f"tokenizer: special token {token!r} is not in the vocabulary")
        return index


class TextStreamer:
    """Text of token ids that arrive one by one; characters are never split.

    What has been pushed and flushed is together what ``decode`` gives.

    Parameters
    ----------
    tokenizer:
        Decodes the ids.
    context:
        Ids before the first one that is pushed. With them the first word keeps its space
        where the tokenizer drops the space that begins a text.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._spaces_to_drop = 0 if context else tokenizer.leading_spaces
        self._ids: list[int] = []  # only where the tokenizer has no bytes to give
        self._shown = 0
        for token_id in context[-_LONGEST_CHARACTER:]:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that has become certain with this id; often empty within a character."""
        data = self._tokenizer.bytes_of(token_id)
        if data is not None:
            return self._without_leading_spaces(self._utf8.decode(data))
        # Such tokenizers (WordPiece) join words by rules of their own: only the whole decoded
        # text says what a token adds. They do not generate, so its cost does not matter.
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        new = text[self._shown :]
        self._shown = len(text)
        return new

    def flush(self) -> str:
        """What is left at the end: an unfinished character as U+FFFD."""
        return self._utf8.decode(b"", final=True)

    def _without_leading_spaces(self, text: str) -> str:
        while self._spaces_to_drop and text:
            if text[0] != " ":
                self._spaces_to_drop = 0
            else:
                self._spaces_to_drop -= 1
                text = text[1:]
        return text


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"text is not valid Unicode at character {error.start}") from error


def _build(assets: TokenizerAssets) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(assets.tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise FormatError(f"tokenizer: not a valid tokenizer.json: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer

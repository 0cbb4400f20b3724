"""A tokenizer with fewer tokens: ``tokenizer.json`` rewritten for the rows that stay."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from slimformer.checkpoint.checkpoint import TokenizerAssets
from slimformer.errors import RecipeError, UnsupportedModelError
from slimformer.prune.vocabulary.byte_pairs import BytePairs
from slimformer.prune.vocabulary.unigram import Unigram
from slimformer.prune.vocabulary.word_pieces import WordPieces
from slimformer.tokenizer import Tokenizer

Renumber = Callable[[int], int]


class Scheme(Protocol):
    """How a tokenizer's model makes tokens."""

    def always(self) -> set[int]:
        """Tokens without which some text could not be written any more."""

    def parents(self, token: int) -> tuple[int, ...]:
        """Tokens that this one is made of: without them it is never made."""

    def cut(self, position: Mapping[int, int]) -> dict[str, Any]:
        """The model with the tokens in ``position`` alone, under the ids given there."""


class Description:
    """What is known of a tokenizer: its tokens, and which of them need which.

    Parameters
    ----------
    assets
        The tokenizer.
    n_rows
        Rows of the embedding; a token beyond them cannot be read and never stays.

    Raises
    ------
    FormatError
        The tokenizer's description is not valid.
    UnsupportedModelError
        It is of a kind whose vocabulary is not cut here; the message names it.
    """

    def __init__(self, assets: TokenizerAssets, n_rows: int) -> None:
        self._assets = assets
        self._tokenizer = Tokenizer(assets)
        self._fields: dict[str, Any] = json.loads(assets.tokenizer_json)
        self._scheme = _scheme(self._fields)
        self._n_rows = n_rows
        self.texts = self._tokenizer.texts()

    def required(self) -> set[int]:
        """Rows that always stay: bytes or characters, added and special tokens."""
        found = set(self._scheme.always()) | set(self._assets.stop_ids)
        found |= {token["id"] for token in self._fields.get("added_tokens") or []}
        found |= {
            index for index in (self._tokenizer.bos_id, self._tokenizer.eos_id) if index is not None
        }

        def note(index: int) -> int:
            found.add(index)
            return index

        _renumbered(self._fields, note)
        return {index for index in found if index < self._n_rows}

    def parents(self, token: int) -> tuple[int, ...]:
        """Tokens that this one is made of."""
        return self._scheme.parents(token)

    def cut(self, rows: tuple[int, ...]) -> TokenizerAssets:
        """The tokenizer that knows these rows alone, ascending, and counts them from 0.

        Raises
        ------
        RecipeError
            A row is missing that always stays.
        UnsupportedModelError
            The result would not open as it is meant.
        """
        position = {row: index for index, row in enumerate(rows)}
        missing = sorted(self.required() - position.keys())
        if missing:
            raise RecipeError(
                f"recipe: vocabulary: expected row {missing[0]}, the token "
                f"{self.texts.get(missing[0], '')!r:.40}, to stay: it is a special token, or one "
                "that all text can be written with"
            )
        fields = _renumbered(
            {
                **self._fields,
                "added_tokens": [
                    {**token, "id": position[token["id"]]}
                    for token in self._fields.get("added_tokens") or []
                    if token["id"] in position
                ],
            },
            position.__getitem__,
        )
        cut = dataclasses.replace(
            self._assets,
            tokenizer_json=json.dumps(
                {**fields, "model": self._scheme.cut(position)}, ensure_ascii=False
            ),
            stop_ids=tuple(position[index] for index in self._assets.stop_ids if index in position),
        )
        wanted = {position[row]: text for row, text in self.texts.items() if row in position}
        if Tokenizer(cut).texts() != wanted:
            raise UnsupportedModelError(
                "tokenizer: its added tokens stand between others, and would lose their rows"
            )
        return cut


def _scheme(fields: Mapping[str, Any]) -> Scheme:
    model = fields["model"]
    # The oldest files do not say the type of a BPE.
    kind = model.get("type", "BPE")
    if kind == "BPE":
        return BytePairs(model, byte_level="ByteLevel" in _step_types(fields.get("pre_tokenizer")))
    if kind == "WordPiece":
        return WordPieces(model)
    if kind == "Unigram":
        return Unigram(model)
    raise UnsupportedModelError(
        f"tokenizer: the vocabulary of a {kind} is not cut here; that of BPE, Unigram and "
        "WordPiece is"
    )


def _step_types(step: Mapping[str, Any] | None) -> set[str]:
    """The types of a pre-tokeniser and of the steps in it."""
    if step is None:
        return set()
    inner = (_step_types(one) for one in step.get("pretokenizers", ()))
    return {step["type"]}.union(*inner)


def _renumbered(fields: Mapping[str, Any], new_id: Renumber) -> dict[str, Any]:
    """The description with other ids in its post-processor and padding."""
    padding = fields.get("padding")
    if padding is not None:
        padding = {**padding, "pad_id": new_id(padding["pad_id"])}
    post_processor = _renumbered_step(fields.get("post_processor"), new_id)
    return {**fields, "padding": padding, "post_processor": post_processor}


def _renumbered_step(step: Mapping[str, Any] | None, new_id: Renumber) -> Mapping[str, Any] | None:
    if step is None or step["type"] == "ByteLevel":
        return step
    if step["type"] == "Sequence":
        return {**step, "processors": [_renumbered_step(s, new_id) for s in step["processors"]]}
    if step["type"] == "TemplateProcessing":
        tokens = {
            name: {**token, "ids": [new_id(index) for index in token["ids"]]}
            for name, token in step["special_tokens"].items()
        }
        return {**step, "special_tokens": tokens}
    if step["type"] in ("BertProcessing", "RobertaProcessing"):
        ends = {end: [step[end][0], new_id(step[end][1])] for end in ("sep", "cls")}
        return {**step, **ends}
    raise UnsupportedModelError(
        f"tokenizer: the ids in a post-processor of type {step['type']!r} are not rewritten here"
    )

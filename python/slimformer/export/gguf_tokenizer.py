"""The metadata of a tokenizer in a GGUF file, from a ``tokenizer.json``.

The inverse of `slimformer.checkpoint.gguf_tokenizer`: GGUF keeps the *name* of a pre-tokeniser, so
only those that have a name there can be written.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from slimformer.checkpoint import TokenizerAssets, gguf_word_pieces
from slimformer.checkpoint.gguf_tokenizer import BYTE_LEVEL_KINDS
from slimformer.errors import UnsupportedModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""GGUF token types."""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_NEVER_MERGED = -1e6
"""Score of a token that no merge makes."""

Metadata = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Vocabulary:
    """Every row of the embedding: its token's text and type."""

    tokens: list[str]
    kinds: list[int]
    ids: dict[str, int]


def tokenizer_metadata(
    assets: TokenizerAssets | None, vocab_size: int, *, framed: bool = False
) -> Metadata:
    """Keys under ``tokenizer.`` with booleans, integers, strings and lists of one type.

    Parameters
    ----------
    assets:
        The tokenizer; without one the file says that it has none.
    vocab_size:
        Rows of the embedding; those without a token get a name of their own.
    framed:
        Whether a token stands before and one behind every text, as encoders have it.

    Raises
    ------
    UnsupportedModelError
        The tokenizer is of a kind that GGUF has no name for, or that is not written here.
    """
    if assets is None:
        return {"tokenizer.ggml.model": "none"}
    description = json.loads(assets.tokenizer_json)
    model = description["model"]
    kind = model.get("type", "BPE")
    if kind not in ("BPE", "WordPiece"):
        raise UnsupportedModelError(
            f"tokenizer: models of type {kind!r} are not written as GGUF here; BPE and WordPiece "
            "are"
        )
    vocabulary = _vocabulary(description, vocab_size)
    if kind == "WordPiece":
        metadata = _word_pieces(description, vocabulary)
    elif model.get("byte_fallback"):
        metadata = _sentencepiece(description, vocabulary)
    else:
        metadata = _byte_level(description)
    metadata = {
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.kinds,
        "tokenizer.ggml.add_bos_token": assets.add_bos,
        **_special_tokens(assets, vocabulary),
        **(_frame(description, vocabulary) if framed else {}),
        **metadata,
    }
    if assets.chat_template is not None:
        metadata["tokenizer.chat_template"] = assets.chat_template
    return metadata


def _vocabulary(description: Mapping[str, Any], vocab_size: int) -> _Vocabulary:
    model = description["model"]
    ids: dict[str, int] = dict(model["vocab"])
    added = description.get("added_tokens") or []
    ids |= {token["content"]: token["id"] for token in added}
    kinds = dict.fromkeys(ids.values(), NORMAL)
    if model.get("byte_fallback"):
        kinds |= {index: BYTE for token, index in ids.items() if _BYTE_TOKEN.fullmatch(token)}
    kinds |= {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in added}
    if model.get("unk_token") in ids:
        kinds[ids[model["unk_token"]]] = UNKNOWN
    beyond = [index for index in kinds if index >= vocab_size]
    if beyond:
        raise UnsupportedModelError(
            f"tokenizer: token {min(beyond)} has no row in the embedding, which has {vocab_size}"
        )
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    for token, index in ids.items():
        tokens[index] = token
    return _Vocabulary(tokens, [kinds.get(index, UNUSED) for index in range(vocab_size)], ids)


def _word_pieces(description: Mapping[str, Any], vocabulary: _Vocabulary) -> Metadata:
    model, normalizer = description["model"], dict(description.get("normalizer") or {})
    known = (
        {**normalizer, "strip_accents": normalizer.get("strip_accents") or None}
        == gguf_word_pieces.NORMALIZER
        and description.get("pre_tokenizer") == gguf_word_pieces.PRE_TOKENIZER
        and model.get("continuing_subword_prefix", "##") == gguf_word_pieces.CONTINUED
    )
    if not known:
        raise UnsupportedModelError(
            "tokenizer: GGUF has WordPiece as uncased BERT uses it: in lower case, by spaces and "
            "punctuation, with ## where a word goes on; export it to huggingface"
        )
    metadata: Metadata = {
        "tokenizer.ggml.model": gguf_word_pieces.MODEL,
        "tokenizer.ggml.tokens": [gguf_word_pieces.as_written(one) for one in vocabulary.tokens],
    }
    places = {"unknown": model.get("unk_token"), "padding": "[PAD]", "mask": "[MASK]"}
    for name, token in places.items():
        if token in vocabulary.ids:
            metadata[f"tokenizer.ggml.{name}_token_id"] = vocabulary.ids[token]
    return metadata


def _frame(description: Mapping[str, Any], vocabulary: _Vocabulary) -> Metadata:
    """The tokens before and behind a text that an encoder reads, where both are there."""
    steps = [description.get("post_processor") or {}]
    if steps[0].get("type") == "Sequence":
        steps = steps[0]["processors"]
    for step in steps:
        ends: list[str | None] = [None, None]
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            ends = [step["cls"][0], step["sep"][0]]
        elif step.get("type") == "TemplateProcessing" and len(step["single"]) == 3:
            first, _, last = step["single"]
            ends = [one.get("SpecialToken", {}).get("id") for one in (first, last)]
        if None not in ends and all(end in vocabulary.ids for end in ends):
            begin, end = (vocabulary.ids[str(one)] for one in ends)
            return {
                "tokenizer.ggml.bos_token_id": begin,
                "tokenizer.ggml.cls_token_id": begin,
                "tokenizer.ggml.eos_token_id": end,
                "tokenizer.ggml.seperator_token_id": end,
                "tokenizer.ggml.add_bos_token": True,
                "tokenizer.ggml.add_eos_token": True,
                "tokenizer.ggml.add_sep_token": True,
            }
    raise UnsupportedModelError(
        "tokenizer: expected a post-processor that puts one token before a text and one behind it, "
        "as encoders have it; export it to huggingface"
    )


def _byte_level(description: Mapping[str, Any]) -> Metadata:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_tokeniser(description),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(description)],
    }


def _pre_tokeniser(description: Mapping[str, Any]) -> str:
    """The name of the pre-tokeniser with these steps."""
    found = _significant(
        description.get("normalizer"),
        description.get("pre_tokenizer"),
        bool(description["model"].get("ignore_merges")),
    )
    for name, kind in BYTE_LEVEL_KINDS.items():
        steps = {"type": "Sequence", "pretokenizers": kind["steps"]}
        if found == _significant(
            kind.get("normalizer"), steps, bool(kind.get("ignore_merges", False))
        ):
            return name
    raise UnsupportedModelError(
        "tokenizer: its pre-tokeniser is none that GGUF has a name for here; known: "
        f"{', '.join(sorted(BYTE_LEVEL_KINDS))}"
    )


def _significant(normalizer: Any, pre_tokenizer: Any, ignore_merges: bool) -> Any:
    """What of the steps changes how a text is split, in one form."""
    steps = [pre_tokenizer]
    if isinstance(pre_tokenizer, Mapping) and pre_tokenizer.get("type") == "Sequence":
        steps = list(pre_tokenizer["pretokenizers"])
    plain = [
        {key: value for key, value in step.items() if key != "trim_offsets"}
        for step in steps
        if step is not None
    ]
    return normalizer, plain, ignore_merges


def _sentencepiece(description: Mapping[str, Any], vocabulary: _Vocabulary) -> Metadata:
    """SentencePiece merges the pair whose union has the best score: here its rank, negated."""
    scores = dict.fromkeys(range(len(vocabulary.tokens)), _NEVER_MERGED)
    for rank, (left, right) in reversed(list(enumerate(_merges(description)))):
        scores[vocabulary.ids[left + right]] = -float(rank)
    metadata: Metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": [scores[index] for index in range(len(vocabulary.tokens))],
        "tokenizer.ggml.add_space_prefix": '"Prepend"' in json.dumps(description["normalizer"]),
    }
    unknown = description["model"].get("unk_token")
    if unknown in vocabulary.ids:
        metadata["tokenizer.ggml.unknown_token_id"] = vocabulary.ids[unknown]
    return metadata


def _merges(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merges by rank; older files join the two tokens with a space."""
    pairs = (
        pair.split(" ", 1) if isinstance(pair, str) else pair
        for pair in description["model"]["merges"]
    )
    return [(left, right) for left, right in pairs]


def _special_tokens(assets: TokenizerAssets, vocabulary: _Vocabulary) -> Metadata:
    """Ids of the tokens that begin and end a text; further ones that end a turn."""
    found = {}
    for name, token in (("bos", assets.bos), ("eos", assets.eos)):
        if token is not None:
            found[f"tokenizer.ggml.{name}_token_id"] = vocabulary.ids[token]
    others = [i for i in assets.stop_ids if i != found.get("tokenizer.ggml.eos_token_id")]
    # GGUF has two more names for what ends a generation; readers know common others by their text.
    for name, index in zip(("eot", "eom"), others, strict=False):
        found[f"tokenizer.ggml.{name}_token_id"] = index
    return found

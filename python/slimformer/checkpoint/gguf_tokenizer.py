"""``tokenizer.json`` from the metadata of a GGUF file.

GGUF keeps a vocabulary, merges or scores, token types and the *name* of a pre-tokeniser;
what that name means is written out here in the terms of the ``tokenizers`` library.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint import gguf_word_pieces
from slimformer.checkpoint.checkpoint import TokenizerAssets
from slimformer.checkpoint.fields import Fields
from slimformer.errors import FormatError, UnsupportedModelError

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
"""GGUF token types that are not split out of ordinary text; 1, 5 and 6 are plain entries."""

MAX_TOKEN_LENGTH = 1024
"""Longest vocabulary entry, in characters: rebuilding merges tries every split of it."""

_STOP_TEXTS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
)
"""Control tokens that end a text or a turn in the common chat formats."""

_STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}
_GPT2_WORDS = {**_BYTE_LEVEL, "use_regex": True}


def _words(digits: str) -> dict[str, Any]:
    """Splits as Llama 3 does: contractions, words with one leading mark, digit groups, marks."""
    return _split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


BYTE_LEVEL_KINDS: dict[str, dict[str, Any]] = {
    "gpt-2": {"steps": [_GPT2_WORDS]},
    "default": {
        "steps": [
            _split(r"[\p{P}\$\+<=>\^~\|]+"),
            _split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
            _split(r"\p{N}+"),
            _split("[0-9][0-9][0-9]"),
            _BYTE_LEVEL,
        ]
    },
    "smollm": {"steps": [{"type": "Digits", "individual_digits": True}, _GPT2_WORDS]},
    "llama-bpe": {
        "steps": [_words(r"\p{N}{1,3}"), _BYTE_LEVEL],
        "ignore_merges": True,
        "add_bos": True,
    },
    "qwen2": {"steps": [_words(r"\p{N}"), _BYTE_LEVEL], "normalizer": {"type": "NFC"}},
    "olmo": {"steps": [_GPT2_WORDS], "normalizer": {"type": "NFC"}},
    "dbrx": {"steps": [_words(r"\p{N}{1,3}"), _BYTE_LEVEL]},
}
"""``tokenizer.ggml.pre`` to the pre-tokenising steps, and what else the name implies.

``default`` is what llama.cpp does with files that do not say."""


def tokenizer_from_gguf(
    metadata: Fields, vocab_size: int, *, framed: bool = False
) -> TokenizerAssets | None:
    """The tokenizer that GGUF metadata describes, ``None`` when there is none.

    Parameters
    ----------
    metadata:
        The key-value pairs of the file.
    vocab_size:
        Rows of the embedding; every row must have a vocabulary entry.
    framed:
        Whether a token stands before and one behind every text, as encoders have it.

    Raises
    ------
    FormatError
        Entries are missing, repeated or contradict each other.
    UnsupportedModelError
        The tokenizer model or pre-tokeniser is not known here.
    """
    model = metadata.text("tokenizer.ggml.model", "none")
    if model == "none":
        return None
    tokens = metadata.texts("tokenizer.ggml.tokens")
    vocab = _vocabulary(metadata, tokens, vocab_size)
    kinds = _token_types(metadata, len(tokens))
    if model == "gpt2":
        body, add_bos = _byte_level_bpe(metadata, vocab)
    elif model == "llama":
        body, add_bos = _sentencepiece_bpe(metadata, tokens, vocab, kinds)
    elif model == gguf_word_pieces.MODEL:
        tokens = [gguf_word_pieces.as_read(token) for token in tokens]
        vocab, add_bos = _unique(metadata, tokens), False
        unknown = _special_token(metadata, "unknown_token_id", tokens)
        if unknown is None:
            metadata.fail("tokenizer.ggml.unknown_token_id", "the token of unknown words", None)
        body = gguf_word_pieces.body(vocab, unknown)
    else:
        raise UnsupportedModelError(
            f"{metadata.where}: tokenizer.ggml.model: {model!r} does not run here; known: "
            f"gpt2, llama, {gguf_word_pieces.MODEL}"
        )
    bos = _special_token(metadata, "bos_token_id", tokens)
    eos = _special_token(metadata, "eos_token_id", tokens)
    end = _special_token(metadata, "seperator_token_id", tokens) or eos if framed else None
    add_bos = metadata.boolean("tokenizer.ggml.add_bos_token", add_bos) and bos is not None
    begins = add_bos or framed
    settings = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, kinds),
        **body,
        "post_processor": _frame(bos, end, vocab) if begins and bos is not None else None,
    }
    template = "tokenizer.chat_template"
    return TokenizerAssets(
        tokenizer_json=json.dumps(settings, ensure_ascii=False),
        chat_template=metadata.text(template) if template in metadata else None,
        bos=bos,
        eos=eos,
        add_bos=add_bos and not framed,
        stop_ids=_stop_ids(metadata, tokens, vocab, kinds),
    )


def _vocabulary(metadata: Fields, tokens: list[str], vocab_size: int) -> dict[str, int]:
    key = "tokenizer.ggml.tokens"
    if len(tokens) != vocab_size:
        raise FormatError(
            f"{metadata.where}: {key}: expected {vocab_size} entries, one for each row of the "
            f"embedding, found {len(tokens)}"
        )
    vocab = _unique(metadata, tokens)
    longest = max(tokens, key=len)
    if len(longest) > MAX_TOKEN_LENGTH:
        raise FormatError(
            f"{metadata.where}: {key}: expected entries of at most {MAX_TOKEN_LENGTH} "
            f"characters, found one of {len(longest)}"
        )
    return vocab


def _unique(metadata: Fields, tokens: list[str]) -> dict[str, int]:
    """The row of each token."""
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        repeated = next(token for index, token in enumerate(tokens) if vocab[token] != index)
        raise FormatError(
            f"{metadata.where}: tokenizer.ggml.tokens: {repeated!r:.60} is found twice"
        )
    return vocab


def _token_types(metadata: Fields, count: int) -> npt.NDArray[Any]:
    key = "tokenizer.ggml.token_type"
    if key not in metadata:
        return np.ones(count, np.int32)
    return _numbers(metadata, key, count, "iu")


def _numbers(metadata: Fields, key: str, count: int, kinds: str) -> npt.NDArray[Any]:
    values = metadata.array(key)
    if values.dtype.kind not in kinds or len(values) != count:
        metadata.fail(key, f"{count} numbers, one for each token", values)
    return values


def _byte_level_bpe(metadata: Fields, vocab: dict[str, int]) -> tuple[dict[str, Any], bool]:
    """GPT-2's scheme: text as bytes, bytes as printable characters, merges by rank."""
    pre = metadata.text("tokenizer.ggml.pre", "default")
    if pre not in BYTE_LEVEL_KINDS:
        raise UnsupportedModelError(
            f"{metadata.where}: tokenizer.ggml.pre: pre-tokeniser {pre!r} does not run here; "
            f"known: {', '.join(sorted(BYTE_LEVEL_KINDS))}"
        )
    kind = BYTE_LEVEL_KINDS[pre]
    steps = kind["steps"]
    body = {
        "normalizer": kind.get("normalizer"),
        "pre_tokenizer": (
            steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
        ),
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": kind.get("ignore_merges", False),
            "vocab": vocab,
            "merges": _ranked_merges(metadata, vocab),
        },
    }
    return body, kind.get("add_bos", False)


def _ranked_merges(metadata: Fields, vocab: dict[str, int]) -> list[tuple[str, str]]:
    key = "tokenizer.ggml.merges"
    merges = []
    for line in metadata.texts(key):
        left, _, right = line.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise FormatError(
                f"{metadata.where}: {key}: expected two tokens and a space that make a third, "
                f"found {line!r:.60}"
            )
        merges.append((left, right))
    return merges


def _sentencepiece_bpe(
    metadata: Fields, tokens: list[str], vocab: dict[str, int], kinds: npt.NDArray[Any]
) -> tuple[dict[str, Any], bool]:
    """SentencePiece's BPE: spaces as U+2581, unknown characters as byte tokens."""
    scores = _numbers(metadata, "tokenizer.ggml.scores", len(tokens), "f")
    prefix = metadata.boolean("tokenizer.ggml.add_space_prefix", True)
    unknown = _special_token(metadata, "unknown_token_id", tokens)
    if unknown is None and bool(np.any(kinds == _UNKNOWN)):
        unknown = tokens[int(np.argmax(kinds == _UNKNOWN))]
    escape = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    unescape = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        escape = [{"type": "Prepend", "prepend": "▁"}, *escape]
        unescape.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    body = {
        "normalizer": {"type": "Sequence", "normalizers": escape},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": unescape},
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges_from_scores(tokens, vocab, scores, kinds),
        },
    }
    return body, True


def _merges_from_scores(
    tokens: list[str], vocab: dict[str, int], scores: npt.NDArray[Any], kinds: npt.NDArray[Any]
) -> list[tuple[str, str]]:
    """The merges that SentencePiece would try, best first.

    SentencePiece merges the neighbouring pair whose union has the best score, so every split
    of an entry into two entries is a merge with the rank of the union's score.
    """
    ordinary = kinds == 1
    merges: list[tuple[float, int, int, str, str]] = []
    for index in np.flatnonzero(ordinary):
        token = tokens[index]
        for cut in range(1, len(token)):
            left, right = vocab.get(token[:cut]), vocab.get(token[cut:])
            if left is not None and right is not None and ordinary[left] and ordinary[right]:
                merges.append((-float(scores[index]), left, right, token[:cut], token[cut:]))
    merges.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in merges]


def _special_token(metadata: Fields, name: str, tokens: list[str]) -> str | None:
    key = f"tokenizer.ggml.{name}"
    if key not in metadata:
        return None
    index = metadata.integer(key)
    if not 0 <= index < len(tokens):
        metadata.fail(key, f"a token id below {len(tokens)}", index)
    return tokens[index]


def _added_tokens(tokens: list[str], kinds: npt.NDArray[Any]) -> list[dict[str, Any]]:
    added = np.flatnonzero(np.isin(kinds, (_UNKNOWN, _CONTROL, _USER_DEFINED)))
    return [
        {
            "id": int(index),
            "content": tokens[index],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": bool(kinds[index] != _USER_DEFINED),
        }
        for index in added
        if tokens[index]
    ]


def _frame(bos: str, end: str | None, vocab: dict[str, int]) -> dict[str, Any]:
    """The post-processor that puts a token before a text, and perhaps one behind it."""
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    behind = [] if end is None else [{"SpecialToken": {"id": end, "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": [begin, first, *behind],
        "pair": [begin, first, *behind, second, *behind],
        "special_tokens": {
            token: {"id": token, "ids": [vocab[token]], "tokens": [token]}
            for token in (bos, end)
            if token is not None
        },
    }


def _stop_ids(
    metadata: Fields, tokens: list[str], vocab: dict[str, int], kinds: npt.NDArray[Any]
) -> tuple[int, ...]:
    texts = [_special_token(metadata, key, tokens) for key in _STOP_KEYS]
    stops = {vocab[text] for text in texts if text is not None}
    stops |= {
        vocab[text] for text in _STOP_TEXTS if text in vocab and kinds[vocab[text]] == _CONTROL
    }
    return tuple(sorted(stops))

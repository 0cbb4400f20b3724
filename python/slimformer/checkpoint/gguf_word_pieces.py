"""WordPiece vocabularies as GGUF keeps them: what begins a word is marked, not what goes on.

llama.cpp cuts such text as uncased BERT does, in lower case and without accents; only tokenizers
that do so are written, and what is read is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL = "bert"
"""What ``tokenizer.ggml.model`` calls it."""

CONTINUED = "##"
_BEGINS = "\u2581"

NORMALIZER: Mapping[str, Any] = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}
PRE_TOKENIZER: Mapping[str, Any] = {"type": "BertPreTokenizer"}


def body(vocab: Mapping[str, int], unknown: str) -> dict[str, Any]:
    """The parts of ``tokenizer.json`` that cut a text; tokens are written as they are there."""
    return {
        "normalizer": NORMALIZER,
        "pre_tokenizer": PRE_TOKENIZER,
        "decoder": {"type": "WordPiece", "prefix": CONTINUED, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": CONTINUED,
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def as_read(token: str) -> str:
    """A token of a file as ``tokenizer.json`` writes it."""
    if _is_named(token):
        return token
    return token.removeprefix(_BEGINS) if token.startswith(_BEGINS) else CONTINUED + token


def as_written(token: str) -> str:
    """A token of ``tokenizer.json`` as a file writes it."""
    if _is_named(token):
        return token
    return token.removeprefix(CONTINUED) if token.startswith(CONTINUED) else _BEGINS + token


def _is_named(token: str) -> bool:
    """Whether it is a special token, or a place for one, and no text: ``[SEP]``, say."""
    return len(token) > 2 and token.startswith("[") and token.endswith("]")

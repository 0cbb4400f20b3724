"""What can be wrong with a ``tokenizer.json`` that is valid JSON, told when a model is loaded.

Making the tokenizer would tell, too, but takes longer than mapping a whole packed model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tokenizers

from slimformer.errors import FormatError

_MODELS = ("BPE", "WordPiece", "WordLevel", "Unigram")

_EMPTY_MODEL = {"type": "WordLevel", "vocab": {}, "unk_token": ""}


def check_tokenizer(description: Mapping[str, Any], where: str) -> None:
    """Raise ``FormatError`` unless a tokenizer can be made of the description.

    The model is looked at here; of all else a tokenizer without words is made.
    """
    _check_model(description.get("model"), where)
    try:
        tokenizers.Tokenizer.from_str(json.dumps({**description, "model": _EMPTY_MODEL}))
    except Exception as error:  # the library raises bare Exception
        raise FormatError(f"{where}: not a valid tokenizer: {error}") from error


def _check_model(model: Any, where: str) -> None:
    if not isinstance(model, dict):
        raise FormatError(f"{where}: model: expected an object, found {model!r:.60}")
    if model.get("type", "BPE") not in _MODELS:
        raise FormatError(
            f"{where}: model: type: expected one of {', '.join(_MODELS)}, found "
            f"{model['type']!r:.60}"
        )
    vocab = model.get("vocab")
    if isinstance(vocab, list):  # of Unigram
        if not all(_is_scored(entry) for entry in vocab):
            raise FormatError(f"{where}: model: vocab: expected pairs of a token and a score")
        return
    if not isinstance(vocab, dict) or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise FormatError(f"{where}: model: vocab: expected token ids by token")
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        _check_merges(model["merges"], vocab, len(str(prefix)), where)


def _is_scored(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and type(entry[1]) in (int, float)
    )


def _check_merges(merges: Any, vocab: Mapping[str, int], prefix: int, where: str) -> None:
    """Each merge is of two tokens, as a list or with a space between them, to a third.

    ``prefix`` is the length of what all tokens begin with that continue a word.
    """
    if not isinstance(merges, list):
        raise FormatError(f"{where}: model: merges: expected a list, found {merges!r:.60}")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(t) is str for t in pair):
            raise FormatError(f"{where}: model: merges: expected two tokens, found {merge!r:.60}")
        first, second = pair
        if first not in vocab or second not in vocab or first + second[prefix:] not in vocab:
            raise FormatError(
                f"{where}: model: merges: {merge!r:.60} is not of tokens in the vocabulary"
            )

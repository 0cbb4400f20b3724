"""Tokenizers as GGUF metadata, read again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from reference.models import tiny_tokenizer
from reference.vocabularies import KINDS, prose
from slimformer.checkpoint import TokenizerAssets
from slimformer.checkpoint.fields import Fields
from slimformer.checkpoint.gguf_tokenizer import BYTE_LEVEL_KINDS, tokenizer_from_gguf
from slimformer.errors import UnsupportedModelError
from slimformer.export.gguf_tokenizer import CONTROL, UNUSED, tokenizer_metadata
from slimformer.prune.vocabulary import Description
from slimformer.tokenizer import Tokenizer

TEXTS = ("the light of 1,234 engines", "  two\n\nlines\tof ünïcode", "don't <|end|> <s>", "")


def changed(assets: TokenizerAssets, **changes: Any) -> TokenizerAssets:
    """The assets with parts of their ``tokenizer.json`` replaced."""
    description = json.loads(assets.tokenizer_json)
    description["model"] |= changes.pop("model", {})
    ends = {"bos": changes.pop("bos", "<|begin|>")}
    ends["eos"] = "<|end|>" if ends["bos"] is not None else None
    return TokenizerAssets(json.dumps({**description, **changes}), **ends)


def read_again(assets: TokenizerAssets, vocab_size: int = 300) -> TokenizerAssets:
    found = tokenizer_from_gguf(Fields("test", arrays(assets, vocab_size)), vocab_size)
    assert found is not None
    return found


def arrays(assets: TokenizerAssets, vocab_size: int, *, framed: bool = False) -> dict[str, Any]:
    """The metadata as a reader sees it, with arrays of numbers."""
    return {
        key: np.asarray(value) if isinstance(value, list) and type(value[0]) is not str else value
        for key, value in tokenizer_metadata(assets, vocab_size, framed=framed).items()
    }


def test_word_pieces_come_back_with_their_frame() -> None:
    before = KINDS["word_pieces"]()
    metadata = tokenizer_metadata(before, 700, framed=True)
    assert metadata["tokenizer.ggml.model"] == "bert"
    assert {"[CLS]", "\u2581the"} < set(metadata["tokenizer.ggml.tokens"])
    found = Fields("test", arrays(before, 700, framed=True))
    again = tokenizer_from_gguf(found, 700, framed=True)
    assert again is not None
    assert not again.add_bos
    ours, theirs = Tokenizer(before), Tokenizer(again)
    for text in (*TEXTS, "Unbelievable engines, of 1859", "\u6771\u4eac"):
        assert theirs.encode_framed(text, 90) == ours.encode_framed(text, 90)


def test_a_frame_of_byte_level_tokens_comes_back() -> None:
    """As RoBERTa has it."""
    before = KINDS["byte_level"]()
    metadata = arrays(before, 905, framed=True)
    assert metadata["tokenizer.ggml.add_eos_token"]
    again = tokenizer_from_gguf(Fields("test", metadata), 905, framed=True)
    assert again is not None
    ours, theirs = Tokenizer(before), Tokenizer(again)
    for text in TEXTS:
        assert theirs.encode_framed(text, 90) == ours.encode_framed(text, 90)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("word_pieces", {"normalizer": {"type": "BertNormalizer", "lowercase": False}}, "uncased"),
        ("word_pieces", {"pre_tokenizer": None}, "uncased"),
        ("word_pieces", {"post_processor": None}, "one token before a text"),
        ("unigram", {}, "models of type 'Unigram'"),
    ],
)
def test_other_tokenizers_of_encoders_are_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        tokenizer_metadata(changed(KINDS[name](), bos=None, **changes), 700, framed=True)


@pytest.mark.parametrize("name", BYTE_LEVEL_KINDS)
def test_every_byte_level_kind_comes_back(name: str) -> None:
    kind = BYTE_LEVEL_KINDS[name]
    before = changed(
        tiny_tokenizer(),
        normalizer=kind.get("normalizer"),
        pre_tokenizer={"type": "Sequence", "pretokenizers": kind["steps"]},
        model={"ignore_merges": kind.get("ignore_merges", False)},
    )
    assert tokenizer_metadata(before, 300)["tokenizer.ggml.pre"] == name
    ours, theirs = Tokenizer(before), Tokenizer(read_again(before))
    for text in TEXTS:
        assert theirs.encode(text, special=True) == ours.encode(text, special=True)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_comes_back(prefix: bool) -> None:
    escape = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    if prefix:
        escape.insert(0, {"type": "Prepend", "prepend": "▁"})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"thelig", "th", "▁th", "▁the", "li", "lig", "ligh", "the"]
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e"), ("l", "i"), ("li", "g"), ("lig", "h")]
    merges.append(("th", "e"))
    before = changed(
        tiny_tokenizer(),
        normalizer={"type": "Sequence", "normalizers": escape},
        pre_tokenizer=None,
        decoder=None,
        added_tokens=[
            {
                "id": index,
                "content": token,
                "special": True,
                **dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False),
            }
            for index, token in enumerate(tokens[:3])
        ],
        model={
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
            "byte_fallback": True,
            "fuse_unk": True,
            "unk_token": "<unk>",
        },
    )
    before = TokenizerAssets(before.tokenizer_json, bos="<s>", eos="</s>", add_bos=True)
    after = read_again(before)
    assert (after.bos, after.eos, after.add_bos) == ("<s>", "</s>", True)
    ours, theirs = Tokenizer(before), Tokenizer(after)
    for text in (*TEXTS, "the light the th lit"):
        assert theirs.encode(text) == ours.encode(text)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_a_cut_vocabulary_comes_back(kind: str) -> None:
    # SentencePiece merges any two tokens that make a third, and so does what is read from GGUF.
    trained = KINDS[kind]()
    whole = read_again(trained, Tokenizer(trained).vocab_size)
    description = Description(whole, 10_000)
    rows = description.required().union(row for row in description.texts if row % 3)
    cut = description.cut(tuple(sorted(rows)))
    ours, theirs = Tokenizer(cut), Tokenizer(read_again(cut, len(rows)))
    assert theirs.texts() == ours.texts()
    for text in (*TEXTS, prose()[:2000]):
        assert theirs.encode(text) == ours.encode(text)


def test_what_ends_a_generation_comes_back() -> None:
    before = tiny_tokenizer()
    before = TokenizerAssets(
        before.tokenizer_json, before.chat_template, "<|begin|>", "<|end|>", False, (0, 1)
    )
    after = read_again(before)
    assert after.stop_ids == (0, 1)
    assert after.chat_template == before.chat_template
    assert (after.bos, after.eos, after.add_bos) == ("<|begin|>", "<|end|>", False)


def test_rows_beyond_the_vocabulary_get_names() -> None:
    metadata = tokenizer_metadata(tiny_tokenizer(300), 303)
    assert metadata["tokenizer.ggml.tokens"][300:] == ["[PAD300]", "[PAD301]", "[PAD302]"]
    assert metadata["tokenizer.ggml.token_type"][300:] == [UNUSED] * 3
    assert metadata["tokenizer.ggml.token_type"][:2] == [CONTROL] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "Unigram"}}, "models of type 'Unigram'"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "none that GGUF has a name for"),
    ],
)
def test_other_kinds_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        tokenizer_metadata(changed(tiny_tokenizer(), **changes), 300)
    with pytest.raises(UnsupportedModelError, match="token 200 has no row"):
        tokenizer_metadata(tiny_tokenizer(), 200)

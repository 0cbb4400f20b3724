from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from tokenizers import pre_tokenizers

from reference.gguf_files import add_value, finish
from slimformer.checkpoint.checkpoint import TokenizerAssets
from slimformer.checkpoint.gguf_header import open_gguf
from slimformer.checkpoint.gguf_tokenizer import MAX_TOKEN_LENGTH, tokenizer_from_gguf
from slimformer.errors import FormatError, UnsupportedModelError
from slimformer.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


def build(tmp_path: Path, **values: Any) -> TokenizerAssets | None:
    """The tokenizer of a file with these ``tokenizer.ggml`` values."""
    writer = GGUFWriter(tmp_path / "tokenizer.gguf", "llama")
    for key, value in values.items():
        name = f"tokenizer.{'' if key == 'chat_template' else 'ggml.'}{key}"
        if value != []:  # the writer takes no empty arrays
            add_value(writer, name, value)
    finish(writer)
    metadata = open_gguf(tmp_path / "tokenizer.gguf").metadata
    return tokenizer_from_gguf(metadata, len(values["tokens"]))


def byte_level(**changes: Any) -> dict[str, Any]:
    """A vocabulary of all bytes, a few merges and special tokens."""
    tokens = ["<|endoftext|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = ["Ġ t", "h e", "Ġt he", "1 2", "12 3"]
    tokens += [merge.replace(" ", "") for merge in merges] + ["<tool>"]
    values: dict[str, Any] = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [CONTROL] * 2 + [NORMAL] * (len(tokens) - 3) + [USER],
        "merges": merges,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "add_bos_token": False,
        "chat_template": "{{ messages }}",
    }
    return {**values, **changes}


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """Pieces whose scores, not their order, say what is merged first."""
    pieces = {"▁": -9.0, "a": -9.0, "b": -9.0, "ab": -2.0, "ba": -1.0, "▁ab": -0.5, "abab": -3.0}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), *pieces]
    values: dict[str, Any] = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 259 + list(pieces.values()),
        "token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {**values, **changes}


def texts(tokenizer: Tokenizer, assets: TokenizerAssets, text: str, **options: Any) -> list[str]:
    return [
        tokenizer.decode([index], skip_special=False) for index in tokenizer.encode(text, **options)
    ]


def test_byte_level_tokens_are_merged_in_rank_order(tmp_path: Path) -> None:
    assets = build(tmp_path, **byte_level())
    assert assets is not None
    tokenizer = Tokenizer(assets)
    assert texts(tokenizer, assets, "he the123\r\n") == ["he", " the", "1", "2", "3", "\r", "\n"]
    assert tokenizer.decode(tokenizer.encode("naïve 🙂\t日本")) == "naïve 🙂\t日本"
    assert (assets.bos, assets.eos, assets.add_bos) == ("<|endoftext|>", "<|im_end|>", False)
    assert assets.stop_ids == (0, 1)
    assert assets.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["x", " ", "123", "\n", "\n", " the"]),
        ("default", ["x", " ", "123", "\n", "\n", " the"]),
        ("smollm", ["x", " ", "1", "2", "3", "\n", "\n", " the"]),
        ("qwen2", ["x", " ", "1", "2", "3", "\n", "\n", " the"]),
        ("llama-bpe", ["x", " ", "123", "\n", "\n", " the"]),
    ],
)
def test_pre_tokenisers_split_digits_their_own_way(
    tmp_path: Path, pre: str, expected: list[str]
) -> None:
    assets = build(tmp_path, **byte_level(pre=pre))
    assert assets is not None
    tokenizer = Tokenizer(assets)
    assert texts(tokenizer, assets, "x 123\n\n the", add_bos=False) == expected


def test_llama_3_begins_with_bos_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    values = byte_level(pre="llama-bpe")
    del values["add_bos_token"]
    assets = build(tmp_path, **values)
    assert assets is not None
    assert assets.add_bos
    assert Tokenizer(assets).encode("a")[:1] == [0]
    quiet = build(tmp_path, **byte_level(pre="llama-bpe", add_bos_token=False))
    assert quiet is not None
    assert not quiet.add_bos


def test_special_tokens_in_text_are_text_unless_asked_for(tmp_path: Path) -> None:
    assets = build(tmp_path, **byte_level())
    assert assets is not None
    tokenizer = Tokenizer(assets)
    typed = tokenizer.encode("a<|im_end|>")
    assert len(typed) > 2
    assert tokenizer.decode(typed) == "a<|im_end|>"
    parsed = tokenizer.encode("a<|im_end|>", special=True)
    assert parsed[1:] == [1]
    assert tokenizer.decode(parsed) == "a"
    assert tokenizer.decode(parsed, skip_special=False) == "a<|im_end|>"
    tool = len(byte_level()["tokens"]) - 1
    assert tokenizer.encode("<tool>") == [tool]


def test_sentencepiece_merges_by_score(tmp_path: Path) -> None:
    assets = build(tmp_path, **sentencepiece())
    assert assets is not None
    tokenizer = Tokenizer(assets)
    entries = sentencepiece()["tokens"]

    def pieces(text: str) -> list[str]:
        return [entries[index] for index in tokenizer.encode(text, add_bos=False)]

    assert pieces("abab") == ["▁", "a", "ba", "b"]  # "ba" goes first: then "▁ab" cannot be
    assert pieces("ab b") == ["▁ab", "▁", "b"]
    assert pieces("é") == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.encode("a")[:1] == [1]  # SentencePiece models begin with bos
    for text in ("abab", " a  b ", "日本🙂é", "", " "):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_without_space_prefix(tmp_path: Path) -> None:
    assets = build(tmp_path, **sentencepiece(add_space_prefix=False))
    assert assets is not None
    tokenizer = Tokenizer(assets)
    assert tokenizer.decode(tokenizer.encode(" ab")) == " ab"
    assert tokenizer.encode("ab", add_bos=False) == [sentencepiece()["tokens"].index("ab")]


def test_a_file_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    finish(GGUFWriter(tmp_path / "tokenizer.gguf", "llama"))
    assert tokenizer_from_gguf(open_gguf(tmp_path / "tokenizer.gguf").metadata, 3) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (byte_level(pre="tekken"), "pre-tokeniser 'tekken' does not run here; known: dbrx"),
        (byte_level(model="t5"), "'t5' does not run here; known: gpt2, llama, bert"),
    ],
)
def test_unknown_schemes_are_refused_by_name(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        build(tmp_path, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (byte_level(merges=["Ġt he", "x y"]), "'x y'"),
        (byte_level(merges=["nothing"]), "'nothing'"),
        (byte_level(merges=[]), "merges: expected a list of strings, found none"),
        (byte_level(token_type=[1, 2]), "one for each token"),
        (byte_level(bos_token_id=5000), "bos_token_id: expected a token id"),
        (byte_level(eos_token_id="two"), "eos_token_id: expected an integer"),
        (sentencepiece(scores=[1.0]), "one for each token"),
        (sentencepiece(unknown_token_id=1 << 30), "unknown_token_id"),
    ],
)
def test_contradictions_are_format_errors(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        build(tmp_path, **values)


def test_vocabularies_are_checked(tmp_path: Path) -> None:
    values = byte_level()
    with pytest.raises(FormatError, match="'a' is found twice"):
        build(tmp_path, **{**values, "tokens": ["a", "a"]})
    with pytest.raises(FormatError, match=f"at most {MAX_TOKEN_LENGTH}"):
        build(tmp_path, **{**values, "tokens": ["a", "b" * (MAX_TOKEN_LENGTH + 1)]})
    build(tmp_path, **values)
    metadata = open_gguf(tmp_path / "tokenizer.gguf").metadata
    with pytest.raises(FormatError, match="expected 7 entries"):
        tokenizer_from_gguf(metadata, 7)


@pytest.mark.parametrize(
    ("tokens", "unknown", "message"),
    [
        (["[UNK]", "\u2581a", "b", "##b"], 0, None),
        (["[UNK]", "\u2581##b", "b"], 0, "'##b' is found twice"),
        (["[UNK]", "\u2581a"], 2, "unknown_token_id"),
        (["[UNK]", "\u2581a"], None, "unknown_token_id: expected the token of unknown words"),
    ],
)
def test_word_pieces_must_be_some(
    tmp_path: Path, tokens: list[str], unknown: int | None, message: str | None
) -> None:
    values = {} if unknown is None else {"unknown_token_id": unknown}
    if message is None:
        assets = build(tmp_path, model="bert", tokens=tokens, **values)
        assert assets is not None
        assert Tokenizer(assets).encode("A ab ac") == [1, 1, 2, 0]
        return
    with pytest.raises(FormatError, match=message):
        build(tmp_path, model="bert", tokens=tokens, **values)

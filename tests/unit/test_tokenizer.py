from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from reference.models import tiny_tokenizer
from slimformer.checkpoint import TokenizerAssets
from slimformer.errors import DataError, FormatError, TokenError
from slimformer.tokenizer import TextStreamer, Tokenizer


def sentencepiece_like() -> TokenizerAssets:
    """Letters, spaces as U+2581, and a token for each byte; spaces at the start are dropped."""
    vocab = {"<unk>": 0, "<s>": 1, "▁": 2, "a": 3, "b": 4}
    vocab.update({f"<0x{value:02X}>": 5 + value for value in range(256)})
    library = Library(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(["<s>"])
    return TokenizerAssets(library.to_str(), bos="<s>", add_bos=True)


BYTE_LEVEL = Tokenizer(tiny_tokenizer())
SENTENCEPIECE = Tokenizer(sentencepiece_like())
BOTH = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["bytes", "pieces"])


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    streamer = TextStreamer(tokenizer)
    return [*(streamer.push(index) for index in ids), streamer.flush()]


@BOTH
@given(text=st.text(max_size=40))
def test_text_survives_and_streams_in_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    if tokenizer is SENTENCEPIECE:
        text = text.replace("▁", "")  # is how that scheme writes a space
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@BOTH
@given(data=st.data())
def test_any_ids_stream_as_they_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Also bytes that are no text: invalid, unfinished, special tokens among them."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@given(text=st.text(max_size=40))
def test_decoding_agrees_with_the_library(text: str) -> None:
    library = Library.from_str(tiny_tokenizer().tokenizer_json)
    ids = BYTE_LEVEL.encode(text)
    assert BYTE_LEVEL.decode(ids) == library.decode(ids)


def test_an_unfinished_character_spoils_no_other() -> None:
    ids = SENTENCEPIECE.encode("日本", add_bos=False)
    assert SENTENCEPIECE.decode(ids[:-1]) == "日\ufffd"
    assert stream(SENTENCEPIECE, ids[:-1]) == ["", "", "", "日", "", "", "\ufffd"]


def test_a_continuation_keeps_its_first_space() -> None:
    ids = SENTENCEPIECE.encode("a", add_bos=False) + SENTENCEPIECE.encode(" b", add_bos=False)[1:]
    prompt, rest = ids[:2], ids[2:]
    streamer = TextStreamer(SENTENCEPIECE, context=prompt)
    assert "".join(streamer.push(index) for index in rest) == " b"
    assert "".join(stream(SENTENCEPIECE, rest)) == "b"


def test_other_decoders_stream_too() -> None:
    vocab = {"[UNK]": 0, "light": 1, "##ly": 2, "river": 3}
    library = Library(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    tokenizer = Tokenizer(TokenizerAssets(library.to_str()))
    ids = tokenizer.encode("lightly river")
    assert tokenizer.decode(ids) == "lightly river"
    assert "".join(stream(tokenizer, ids)) == "lightly river"


def test_bos_is_added_once_and_as_the_model_asks() -> None:
    assert SENTENCEPIECE.encode("a")[0] == 1
    assert 1 not in SENTENCEPIECE.encode("a", add_bos=False)
    assert SENTENCEPIECE.encode("<s>a", special=True).count(1) == 1
    assert 0 not in BYTE_LEVEL.encode("a")
    assert BYTE_LEVEL.encode("a", add_bos=True)[0] == 0
    silent = Tokenizer(dataclasses.replace(tiny_tokenizer(), bos=None, add_bos=True))
    assert silent.encode("a") == BYTE_LEVEL.encode("a")


def test_truncation_and_padding_in_the_file_are_not_applied() -> None:
    settings = json.loads(tiny_tokenizer().tokenizer_json)
    settings["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    assets = dataclasses.replace(tiny_tokenizer(), tokenizer_json=json.dumps(settings))
    assert Tokenizer(assets).encode("the river") == BYTE_LEVEL.encode("the river")


def test_surrogates_are_not_text() -> None:
    with pytest.raises(DataError, match="character 2"):
        BYTE_LEVEL.encode("ab\ud800")


@pytest.mark.parametrize("bad", [-1, 1 << 31, 1 << 70])
def test_ids_out_of_range_are_token_errors(bad: int) -> None:
    with pytest.raises(TokenError, match="found"):
        BYTE_LEVEL.decode([bad])


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"model": 1}', "{"])
def test_a_broken_description_is_a_format_error(text: str) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        Tokenizer(TokenizerAssets(text))


def test_special_tokens_must_exist() -> None:
    with pytest.raises(FormatError, match="<none>"):
        Tokenizer(dataclasses.replace(tiny_tokenizer(), eos="<none>"))


def test_a_model_without_a_template_says_so() -> None:
    tokenizer = Tokenizer(dataclasses.replace(tiny_tokenizer(), chat_template=None))
    with pytest.raises(DataError, match="no chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}])


def test_conversations_become_text() -> None:
    messages = [{"role": "user", "content": "river"}]
    text = BYTE_LEVEL.apply_chat_template(messages)
    assert text == "<|begin|>user: river<|end|><|begin|>assistant: "
    assert BYTE_LEVEL.apply_chat_template(messages, add_generation_prompt=False) == text[:-20]
    ids = BYTE_LEVEL.encode(text, special=True)
    assert ids.count(0) == 2

"""Stop texts and settings of text generation, without a model."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from reference.models import tiny_tokenizer
from slimformer.errors import ConfigError
from slimformer.generation import GenerationSettings, StopFilter, generate_text
from slimformer.tokenizer import Tokenizer

TEXTS = st.text(alphabet="ab<>", max_size=30)


@hypothesis.given(pieces=st.lists(TEXTS, max_size=8), stop=st.lists(TEXTS.filter(bool), max_size=3))
def test_stop_texts_cut_as_if_the_text_had_come_at_once(pieces: list[str], stop: list[str]) -> None:
    stop_filter = StopFilter(stop)
    shown = "".join(stop_filter.push(piece) for piece in pieces)
    shown += "" if stop_filter.stopped else stop_filter.flush()

    # The first piece after which a stop text is complete decides.
    text = ""
    for piece in pieces:
        text += piece
        if any(word in text for word in stop):
            break
    cuts = [text.index(word) for word in stop if word in text]
    assert shown == text[: min(cuts, default=len(text))]
    assert stop_filter.stopped == bool(cuts)


def test_a_beginning_of_a_stop_text_is_held_back() -> None:
    stop_filter = StopFilter(["<end>"])
    assert stop_filter.push("one <e") == "one "
    assert stop_filter.push("ve") == "<eve"
    assert stop_filter.push("<") == ""
    assert stop_filter.flush() == "<"


def test_tokens_after_a_stop_text_are_not_asked_for() -> None:
    tokenizer = Tokenizer(tiny_tokenizer())
    ids = tokenizer.encode("the river. the stone.")
    asked = iter(ids)
    pieces = list(generate_text(asked, tokenizer, ["river"], []))
    assert "".join(text for _, text in pieces) == "the "
    assert next(asked) in ids


def test_characters_are_never_split() -> None:
    tokenizer = Tokenizer(tiny_tokenizer())
    text = "é 漢字 🙂"
    pieces = [piece for _, piece in generate_text(iter(tokenizer.encode(text)), tokenizer, [], [])]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize(
    "options", [{"max_tokens": 0}, {"stop": "text"}, {"stop": ["a", ""]}], ids=str
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        GenerationSettings(**options)  # type: ignore[arg-type]

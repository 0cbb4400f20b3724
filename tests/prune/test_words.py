"""Lists of words decide about tokens that text has not used."""

from __future__ import annotations

import importlib.machinery
import sys
import types

import numpy as np
import pytest

from reference.vocabularies import KINDS, prose
from slimformer.errors import DataError, MissingPackageError
from slimformer.prune.vocabulary import words
from slimformer.prune.vocabulary.choice import count_tokens
from slimformer.tokenizer import Tokenizer

from .test_vocabulary import every_kind, model

LISTS = {"en": {"the": 0.5, "river": 0.1, "stone": 0.2}, "xx": {"kkk": 1e-3}}


@pytest.fixture(autouse=True)
def wordfreq(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("wordfreq")
    package.__spec__ = importlib.machinery.ModuleSpec("wordfreq", None)
    package.available_languages = lambda: dict.fromkeys(LISTS, "")  # type: ignore[attr-defined]
    package.get_frequency_dict = LISTS.get  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wordfreq", package)


@every_kind
def test_tokens_are_shared_out_as_words_are_used(kind: str) -> None:
    tokenizer = Tokenizer(KINDS[kind]())
    texts = words.spellings(tokenizer, tokenizer.vocab_size)
    found = words.word_shares(tokenizer, texts, ["en"])
    assert found.sum() == pytest.approx(1)
    expected = np.zeros(len(texts))
    for before, capital, often in words.FORMS:
        for word, frequency in LISTS["en"].items():
            text = before + (word.capitalize() if capital else word)
            for token in tokenizer.encode(text, add_bos=False):
                expected[token] += often * frequency
    spaceless = [text.strip(" ") for text in texts]
    marks = [i for i, text in enumerate(spaceless) if text and words.MARKS.issuperset(text)]
    assert marks
    assert found[marks].sum() == pytest.approx(words.MARKS_SHARE)
    assert (np.diff(found[marks]) < 0).all()
    rest = (1 - words.MARKS_SHARE) * expected / expected.sum()
    np.testing.assert_allclose(np.delete(found, marks), np.delete(rest, marks))
    both = words.word_shares(tokenizer, texts, ["en", "xx"])
    np.testing.assert_allclose(both, (found + words.word_shares(tokenizer, texts, ["xx"])) / 2)


def test_tokens_of_words_stay_before_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from slimformer.prune import cut_to_text

    dense = model("byte_level")
    text = prose()
    counts = count_tokens(dense, [text])
    once = [t for t in np.flatnonzero(counts == 1).tolist() if t > 300]
    without = cut_to_text(dense, [text[:300]], size=420).vocabulary
    tokenizer = Tokenizer(KINDS["byte_level"]())
    spelled = [tokenizer.texts()[token].strip() for token in once]
    monkeypatch.setitem(LISTS, "en", {text: 0.01 for text in spelled if text.isalpha()})
    found = cut_to_text(dense, [text[:300]], size=420, languages=["en"]).vocabulary
    assert found is not None
    assert without is not None
    assert len(set(once) & set(found)) > len(set(once) & set(without))


def test_languages_without_a_list_and_no_list_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(KINDS["byte_level"]())
    texts = words.spellings(tokenizer, tokenizer.vocab_size)
    with pytest.raises(DataError, match="expected languages among en, xx, found 'klingon'"):
        words.word_shares(tokenizer, texts, ["klingon"])
    monkeypatch.delitem(sys.modules, "wordfreq")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"slimformer\[words\]"):
        words.word_shares(tokenizer, texts, ["en"])

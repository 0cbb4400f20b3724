"""Vocabularies of every kind are cut; what text still needs is told apart from what it does not."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from reference.models import random_checkpoint, random_config
from reference.vocabularies import KINDS, prose
from slimformer.checkpoint import Checkpoint, TokenizerAssets, load, save
from slimformer.errors import BudgetError, DataError, RecipeError, UnsupportedModelError
from slimformer.prune import Recipe, apply, cut_to_text, prune
from slimformer.prune.vocabulary import Description
from slimformer.prune.vocabulary.choice import choose_rows, count_tokens, zipf_shares
from slimformer.tokenizer import Tokenizer

every_kind = pytest.mark.parametrize("kind", KINDS)

PADDING_ROWS = 7
"""Rows of the embedding that no token has."""


@functools.cache
def model(kind: str) -> Checkpoint:
    """A model with such a tokenizer, and rows beyond it."""
    assets = KINDS[kind]()
    size = Tokenizer(assets).vocab_size + PADDING_ROWS
    config = random_config(np.random.default_rng(1), vocab_size=size, ragged=False)
    return dataclasses.replace(random_checkpoint(config, 1), tokenizer=assets)


@functools.cache
def cut(kind: str) -> tuple[tuple[int, ...], Checkpoint]:
    """The rows that a part of the prose needs, and the model with those alone."""
    recipe = cut_to_text(model(kind), [prose()[:1500]], share=0.8)
    assert recipe.vocabulary is not None
    return recipe.vocabulary, apply(model(kind), recipe)


def assets_of(checkpoint: Checkpoint) -> TokenizerAssets:
    assert checkpoint.tokenizer is not None
    return checkpoint.tokenizer


@functools.cache
def tokenizers(kind: str) -> tuple[Tokenizer, Tokenizer]:
    """Before and after."""
    return Tokenizer(KINDS[kind]()), Tokenizer(assets_of(cut(kind)[1]))


@every_kind
def test_much_goes_and_no_padding_row_stays(kind: str) -> None:
    rows, small = cut(kind)
    assert small.config.vocab_size == len(rows) < 0.9 * Tokenizer(KINDS[kind]()).vocab_size
    assert tokenizers(kind)[1].vocab_size == len(rows)
    before, after = (one.read("embedding.weight") for one in (model(kind), small))
    np.testing.assert_array_equal(after, before[list(rows)])


@every_kind
@given(text=st.text(max_size=30) | st.sampled_from(prose().split()))
def test_text_comes_back_as_it_did(kind: str, text: str) -> None:
    before, after = tokenizers(kind)
    ids = after.encode(text, add_bos=False)
    assert all(0 <= index < after.vocab_size for index in ids)
    assert after.decode(ids, skip_special=False) == before.decode(
        before.encode(text, add_bos=False), skip_special=False
    )


@every_kind
def test_text_of_tokens_that_stay_is_cut_as_before(kind: str) -> None:
    rows, _ = cut(kind)
    before, after = tokenizers(kind)
    position = {row: index for index, row in enumerate(rows)}
    same = 0
    for line in prose().splitlines():
        for text in (line, *line.split()):
            ids = before.encode(text, add_bos=False)
            if all(index in position for index in ids):
                assert after.encode(text, add_bos=False) == [position[index] for index in ids]
                same += 1
    assert same > 50


@every_kind
def test_special_tokens_have_their_new_ids_everywhere(kind: str) -> None:
    assets = assets_of(cut(kind)[1])
    library = Library.from_str(assets.tokenizer_json)
    entries = library.get_vocab(with_added_tokens=True)
    assert sorted(entries.values()) == list(range(len(entries)))
    fields = json.loads(assets.tokenizer_json)
    for token in fields["added_tokens"]:
        assert library.token_to_id(token["content"]) == token["id"]
    old = Library.from_str(KINDS[kind]().tokenizer_json)
    assert library.encode("the sea").tokens == old.encode("the sea").tokens
    assert [entry in entries for entry in (assets.bos, assets.eos) if entry is not None].count(
        False
    ) == 0
    if assets.eos is not None:
        assert assets.stop_ids == (library.token_to_id(assets.eos),)
    if library.padding is not None:
        assert library.padding["pad_id"] == library.token_to_id(library.padding["pad_token"])


@every_kind
def test_a_cut_model_is_saved_and_loaded(kind: str, tmp_path: Any) -> None:
    _, small = cut(kind)
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert again.config == small.config
    assert again.recipe == small.recipe
    # Older files say less of what the library takes for granted.
    before, after = (Tokenizer(assets_of(one)) for one in (small, again))
    assert before.texts() == after.texts()
    settings = json.loads((tmp_path / "small" / "config.json").read_text())
    assert settings["vocab_size"] == small.config.vocab_size
    assert (settings["eos_token_id"] or []) == list(assets_of(small).stop_ids)


@every_kind
def test_two_cuts_are_one(kind: str) -> None:
    once = cut_to_text(model(kind), [prose()[:1500]], share=0.9)
    twice = cut_to_text(apply(model(kind), once), [prose()[:700]], share=0.7)
    left, right = apply(apply(model(kind), once), twice), apply(model(kind), once.then(twice))
    assert left.tokenizer == right.tokenizer
    assert left.fingerprint == right.fingerprint


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_tokens_bring_what_they_are_merged_from(kind: str) -> None:
    rows, _ = cut(kind)
    description = Description(KINDS[kind](), model(kind).config.vocab_size)
    for row in rows:
        assert set(description.parents(row)) <= set(rows)
    longest = max(description.texts, key=lambda row: len(description.texts[row]))
    left, right = description.parents(longest)
    assert description.texts[left] + description.texts[right] == description.texts[longest]


def test_a_size_is_met_exactly() -> None:
    recipe = cut_to_text(model("byte_level"), [prose()], size=500)
    assert recipe.vocabulary is not None
    assert len(recipe.vocabulary) == 500


def test_what_is_needed_comes_first() -> None:
    counts = count_tokens(model("byte_level"), [prose()])
    description = Description(KINDS["byte_level"](), len(counts))
    rows = choose_rows(description, counts / counts.sum(), share=0.5)
    chosen = set(rows) - description.required()
    left = set(description.texts) - set(rows)
    assert max(counts[list(left)]) <= max(counts[list(chosen)])
    everything = choose_rows(description, counts / counts.sum(), share=1.0)
    assert set(np.flatnonzero(counts).tolist()) <= set(everything)


def test_other_languages_are_not_expected() -> None:
    shares = zipf_shares(["日", "ab", "b"], ["aaaa bbbb"])
    assert shares[1] > shares[2] > 10 * shares[0] > 0
    assert shares.sum() == pytest.approx(1)


def test_rows_that_text_cannot_do_without_must_stay() -> None:
    whole = Recipe.identity(model("byte_level"))
    rows = tuple(range(2, model("byte_level").config.vocab_size))
    with pytest.raises(RecipeError, match=r"expected row 0, the token '<\|begin\|>', to stay"):
        apply(model("byte_level"), dataclasses.replace(whole, vocabulary=rows))


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(BudgetError, match=r"at least \d+ rows"):
        cut_to_text(model("byte_level"), [prose()], size=10)
    with pytest.raises(BudgetError, match="share above 0"):
        cut_to_text(model("byte_level"), [prose()], share=0.0)
    with pytest.raises(BudgetError, match="found both"):
        cut_to_text(model("byte_level"), [prose()], size=500, share=0.5)
    with pytest.raises(DataError, match="no tokens"):
        cut_to_text(model("byte_level"), [""])


def test_a_model_without_a_tokenizer_says_so() -> None:
    mute = dataclasses.replace(model("byte_level"), tokenizer=None)
    with pytest.raises(DataError, match="no tokenizer"):
        cut_to_text(mute, [prose()])
    recipe = dataclasses.replace(Recipe.identity(mute), vocabulary=(0, 1))
    with pytest.raises(RecipeError, match="no tokenizer"):
        apply(mute, recipe)


def change(kind: str, **fields: Any) -> TokenizerAssets:
    """A tokenizer with other settings of its model."""
    description = json.loads(KINDS[kind]().tokenizer_json)
    description["model"] |= fields
    return TokenizerAssets(json.dumps(description))


@pytest.mark.parametrize(
    ("assets", "name"),
    [
        (change("byte_level", end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (change("sentencepiece", byte_fallback=False), "no bytes"),
        (
            TokenizerAssets(
                json.dumps(
                    {
                        "version": "1.0",
                        "added_tokens": [],
                        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
                    }
                )
            ),
            "WordLevel",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_kinds_are_refused_by_name(assets: TokenizerAssets, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=name):
        Description(assets, 10)


def test_pruning_repairs_on_the_new_tokens() -> None:
    """Tokens go first, and a recipe says the same as doing one after the other."""
    source = model("byte_level")
    recipe = cut_to_text(source, [prose()], size=500)
    dropped = apply(source, recipe)
    layer = next(kept for kept in recipe.layers)
    fewer = dataclasses.replace(
        Recipe.identity(dropped),
        layers=(dataclasses.replace(layer, attention=None), *recipe.layers[1:]),
    )
    options: dict[str, Any] = {"calibration": [prose()], "tokens": 2048, "threads": 1}
    steps = prune(dropped, fewer, **options)
    at_once = prune(source, recipe.then(fewer), **options)
    assert at_once.fingerprint == steps.fingerprint
    assert at_once.recipe == steps.recipe == recipe.then(fewer).to_dict()
    only_tokens = prune(source, recipe)
    assert only_tokens.fingerprint == dropped.fingerprint

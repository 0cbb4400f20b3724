"""The laws on the real model, every tier that this machine runs where the law speaks of tiers."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from reference.engines import TIERS, TOLERANCE, difference
from reference.forward import forward
from slimformer.checkpoint import Checkpoint, load, save
from slimformer.engine import Engine, Mask
from slimformer.evaluate import logits_digest, measure_footprint
from slimformer.prune import Recipe, apply, cut_to_text, explicit, load_calibration, prune
from slimformer.prune.masks import to_mask
from slimformer.tokenizer import Tokenizer

DATA = Path(str(resources.files("slimformer") / "data"))

PROMPT = "The lighthouse keeper climbed the stairs, as on every evening, and"
FAR_TOLERANCE = 1e-3
"""Of the largest logit, between float32 and float64: thirty layers instead of a handful."""


@pytest.fixture(scope="module")
def engine(real_model: Checkpoint) -> Engine:
    return Engine(real_model, weights="f32")


@pytest.fixture(scope="module")
def tokens(engine: Engine) -> list[int]:
    assert engine.tokenizer is not None
    return engine.tokenizer.encode(PROMPT)


@pytest.fixture(scope="module")
def recipe(real_model: Checkpoint) -> Recipe:
    """A layer, both kinds of sub-blocks, heads of one layer and neurons of all."""
    return explicit(
        real_model,
        drop_layers=(11,),
        drop_attention=(7,),
        drop_ffn=(20,),
        heads={4: (0, 1, 3, 8)},
        neurons=1021,
    )


def test_a_mask_equals_surgery(real_model: Checkpoint, engine: Engine, tokens: list[int]) -> None:
    skipped = explicit(real_model, drop_layers=(11, 12), drop_attention=(7,), drop_ffn=(20,))
    slim = Engine(apply(real_model, skipped), weights="f32")
    mask = Mask(skip_attention=(7, 11, 12), skip_ffn=(11, 12, 20))
    masked, cut = engine.session(mask), slim.session()
    np.testing.assert_array_equal(masked.extend(tokens), cut.extend(tokens))
    assert masked.kv_bytes == cut.kv_bytes


def test_masked_heads_and_neurons_equal_surgery_to_rounding(
    real_model: Checkpoint, engine: Engine, tokens: list[int], recipe: Recipe
) -> None:
    slim = Engine(apply(real_model, recipe), weights="f32")
    masked = engine.session(to_mask(recipe, real_model.config))
    assert difference(masked.extend(tokens), slim.session().extend(tokens)) < TOLERANCE


def test_the_empty_recipe_changes_nothing(real_model: Checkpoint) -> None:
    same = apply(real_model, Recipe.identity(real_model))
    assert same.fingerprint == real_model.fingerprint


def test_recipes_compose(real_model: Checkpoint, recipe: Recipe) -> None:
    once = apply(real_model, recipe)
    further = explicit(once, drop_layers=(3,), neurons=700)
    assert apply(once, further).fingerprint == apply(real_model, recipe.then(further)).fingerprint


def test_sequences_agree(engine: Engine, tokens: list[int]) -> None:
    """Prefill and decode, batch and single to rounding; a fork bit for bit."""
    alone = engine.session().extend(tokens)
    stepwise = engine.session()
    for token in tokens:
        last = stepwise.extend([token])
    assert difference(last, alone) < TOLERANCE

    batch = engine.forward([engine.session(), engine.session()], [tokens, tokens[:5]])
    assert difference(batch[0], alone) < TOLERANCE
    assert difference(batch[1], engine.session().extend(tokens[:5])) < TOLERANCE

    trunk = engine.session()
    trunk.extend(tokens[:6])
    fork = trunk.fork()
    trunk.extend([1, 2, 3])
    recomputed = engine.session()
    recomputed.extend(tokens[:6])
    np.testing.assert_array_equal(fork.extend(tokens[6:]), recomputed.extend(tokens[6:]))


@pytest.mark.parametrize("weights", ["f32", "bf16", "int8", "int4"])
def test_the_number_of_threads_changes_nothing(
    real_model: Checkpoint, tokens: list[int], weights: str
) -> None:
    one, three = (
        Engine(real_model, weights=weights, threads=threads).session().extend(tokens)  # type: ignore[arg-type]
        for threads in (1, 3)
    )
    np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_agrees_with_the_numpy_reference(
    real_model: Checkpoint, tokens: list[int], tier: str
) -> None:
    expected = forward(real_model.config, real_model.read_f32, tokens)
    engine = Engine(real_model, weights="f32", tier=tier)
    found = engine.forward([engine.session()], [tokens], logits="all")
    assert difference(found, expected) < FAR_TOLERANCE


def test_a_saved_model_is_the_one_that_was_made(
    real_model: Checkpoint, recipe: Recipe, tmp_path: Path
) -> None:
    """Same bytes when saved again, same logits in a new process, bytes as predicted."""
    slim = prune(real_model, recipe, repair="none")
    save(slim, tmp_path / "first")
    again = load(tmp_path / "first")
    save(again, tmp_path / "second")
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
    made = Engine(slim)
    assert measure_footprint(tmp_path / "first").logits_sha256 == logits_digest(made)

    weights = (tmp_path / "first" / "model.safetensors").stat().st_size
    assert weights == pytest.approx(2 * slim.config.parameters(), rel=1e-3)
    dense = Engine(real_model)
    removed = slim.config.parameters() / real_model.config.parameters()
    # A panel is padded to its width: at most one in sixty for the narrowest matrix here.
    assert made.weight_bytes / dense.weight_bytes == pytest.approx(removed, rel=0.01)


def test_dropped_tokens_are_spelled_with_others(real_model: Checkpoint, tmp_path: Path) -> None:
    """The real vocabulary at a third: text comes back, and bytes go with the rows."""
    recipe = cut_to_text(real_model, load_calibration([DATA / "prose.txt"]), size=16384)
    small = apply(real_model, recipe)
    save(small, tmp_path / "small")
    engine = Engine(load(tmp_path / "small"), weights="int8")
    assert engine.tokenizer is not None
    text = (DATA / "drama.txt").read_text(encoding="utf-8") + " Ünïcödé 日本 🙂 <|im_start|>"
    ids = engine.tokenizer.encode(text)
    assert engine.tokenizer.decode(ids) == text
    assert max(ids) < small.config.vocab_size == 16384
    chat = engine.tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
    names = Tokenizer(real_model.tokenizer).encode(chat, special=True)  # type: ignore[arg-type]
    assert engine.tokenizer.encode(chat, special=True)[0] == names[0]
    saved = recipe.to_json()
    assert len(saved) < 100_000
    row = small.config.n_channels
    lost = (49152 - 16384) * row
    assert real_model.config.parameters() - small.config.parameters() == lost
    fewer = Engine(real_model, weights="int8").weight_bytes - engine.weight_bytes
    assert fewer == pytest.approx(lost * 1.03, rel=0.02)  # a scale for each 64 of them

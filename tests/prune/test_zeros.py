"""Zeros for whole models: streaming, the pipeline, recipes, saving."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prune.cases import random_recipe
from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import Checkpoint, load
from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinkConfig,
    ModelConfig,
    RopeConfig,
)
from slimformer.engine import Engine
from slimformer.errors import ConfigError
from slimformer.prune import Recipe, apply, prune
from slimformer.prune.divergence import Predictions
from slimformer.prune.zeros.choice import METHODS, Method, Zeros, layer_of, layer_sizes
from slimformer.prune.zeros.pattern import Pattern
from slimformer.prune.zeros.prices import KINDS, kind_of, measure_costs
from slimformer.prune.zeros.walk import fill

TEXTS = ["the cat sat on the mat and the dog ran to the house " * 40]


def small(seed: int = 0, *, parallel: bool = False, dtype: str = "f32") -> Checkpoint:
    """Ragged layers of odd widths, one of them a link."""
    wide = AttentionConfig(4, 2, 8, 8, (0, 0, 1, 1), 0.3, RopeConfig(8))
    narrow = AttentionConfig(3, 2, 8, 8, (0, 1, 1), 0.3, RopeConfig(8))
    layers = (
        LayerConfig(wide, FfnConfig(37), parallel),
        LayerConfig(narrow, FfnConfig(21), parallel),
        LayerConfig(LinkConfig("full"), FfnConfig(13)),
        LayerConfig(None, FfnConfig(29)),
    )
    vocab = random_config(np.random.default_rng(0)).vocab_size
    config = ModelConfig("llama", vocab, 24, 24, 1e-5, False, 600, layers)
    return random_checkpoint(config, seed, dtype=dtype, tokenizer=True)


def windows_of(checkpoint: Checkpoint, count: int = 12, length: int = 64) -> np.ndarray:
    rng = np.random.default_rng(7)
    ids = rng.integers(0, checkpoint.config.vocab_size, (count, length))
    return ids.astype(np.int32)


def divergence(dense: Checkpoint, pruned: Checkpoint) -> float:
    tokens = windows_of(dense, 3, 200).reshape(-1)[:500]
    return Predictions(_logits(dense, tokens)).divergence(_logits(pruned, tokens))


def _logits(model: Checkpoint, tokens: np.ndarray) -> np.ndarray:
    engine = Engine(model, weights="f32")
    return engine.forward([engine.session()], [tokens], logits="all")


def zeros_of(checkpoint: Checkpoint, method: Method = "sparsegpt", share: float = 0.5) -> Zeros:
    return Zeros(method, Pattern(), dict.fromkeys(layer_sizes(checkpoint.config), share))


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_matrix_has_its_share(method: Method, parallel: bool) -> None:
    dense = small(parallel=parallel)
    sparse = fill(dense, zeros_of(dense, method), windows_of(dense), refit=True)
    for name, tensor in dense.tensors.items():
        if name in layer_sizes(dense.config):
            share = (sparse.read(name) == 0).mean()
            # Wanda counts in every output for itself.
            assert share == pytest.approx(0.5, abs=1 / tensor.shape[1 if method == "wanda" else 0])
        else:
            np.testing.assert_array_equal(sparse.read(name), tensor.read())


def test_a_refit_brings_the_model_nearer() -> None:
    dense = small()
    windows = windows_of(dense, 40)

    def of(method: Method, *, refit: bool) -> float:
        return divergence(dense, fill(dense, zeros_of(dense, method), windows, refit=refit))

    assert of("sparsegpt", refit=False) < of("magnitude", refit=False)
    for method in METHODS:
        assert of(method, refit=True) < of(method, refit=False)


def test_no_zeros_change_nothing() -> None:
    dense = small(parallel=True)
    same = fill(dense, zeros_of(dense, share=0.0), windows_of(dense), refit=True)
    for name in dense.tensors:
        np.testing.assert_array_equal(same.read(name), dense.read(name))


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_head_have_theirs(tied: bool) -> None:
    dense = small()
    if tied:
        config = dataclasses.replace(dense.config, tied_head=True)
        tensors = {name: tensor for name, tensor in dense.tensors.items() if name != "head.weight"}
        dense = dataclasses.replace(dense, config=config, tensors=tensors)
    names = {"embedding.weight", "head.weight"} & dense.tensors.keys()

    def of(method: Method, *, refit: bool) -> Checkpoint:
        zeros = Zeros(method, Pattern(), dict.fromkeys(names, 0.4))
        return fill(dense, zeros, windows_of(dense, 40), refit=refit)

    filled = of("sparsegpt", refit=True)
    for name in dense.tensors:
        share = 0.4 if name in names else 0.0
        assert (filled.read(name) == 0).mean() == pytest.approx(share, abs=0.01)
    if not tied:  # what an embedding of independent values loses, nothing makes up for
        assert divergence(dense, filled) < divergence(dense, of("magnitude", refit=False))


def test_the_vocabulary_is_told_of() -> None:
    dense = small()
    wish = {"calibration": TEXTS, "tokens": 512, "sparsity": 0.3, "vocabulary_sparsity": 0.25}
    sparse = prune(dense, Recipe.identity(dense), **wish)  # type: ignore[arg-type]
    told = Recipe.from_dict(sparse.recipe or {}).zeros
    assert told is not None
    for name in ("embedding.weight", "head.weight"):
        assert told.shares[name] == 0.25
        assert (sparse.read(name) == 0).mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_any_model_gets_zeros(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = random_config(rng)
    dense = random_checkpoint(config, seed, dtype="bf16", tokenizer=True)
    sparse = fill(dense, zeros_of(dense), windows_of(dense, 3, 20), refit=True)
    for name, size in layer_sizes(config).items():
        assert (sparse.read(name) == 0).sum() >= int(0.4 * size)


def test_costs_are_those_of_matrices_with_more_zeros() -> None:
    dense = small()
    draft = fill(dense, zeros_of(dense), windows_of(dense), refit=True)
    sparser = fill(dense, zeros_of(dense, share=0.7), windows_of(dense), refit=False)
    windows = windows_of(dense, 2, 40)
    costs = measure_costs(dense, draft, sparser, windows)

    def apart(model: Checkpoint) -> float:
        dense_logits, logits = (
            np.concatenate([_logits(one, window) for window in windows])[::2]
            for one in (dense, model)
        )
        return Predictions(dense_logits).divergence(logits)

    def cost(wanted: Callable[[str], bool]) -> float:
        names = [name for name in layer_sizes(dense.config) if wanted(name)]
        changed = draft.with_tensors({name: sparser.read(name) for name in names})
        return apart(changed) - apart(draft)

    expected = [cost(lambda name, kind=kind: kind_of(name) == kind) for kind in range(len(KINDS))]  # type: ignore[misc]
    assert costs.kinds == pytest.approx(expected, rel=0.02, abs=1e-5)
    expected = [cost(lambda name, layer=layer: layer_of(name) == layer) for layer in range(4)]  # type: ignore[misc]
    assert costs.layers == pytest.approx(expected, rel=0.02, abs=1e-5)


def test_structure_first_then_zeros(tmp_path: Path) -> None:
    dense = small(dtype="bf16")
    recipe = random_recipe(np.random.default_rng(3), dense)
    slim = prune(dense, recipe, calibration=TEXTS, tokens=1024, sparsity=0.5)
    assert slim.sparse
    assert slim.config == apply(dense, recipe).config
    told = Recipe.from_dict(slim.recipe or {})
    assert told.layers == recipe.layers
    assert told.zeros is not None
    assert told.zeros.share(slim.config) == pytest.approx(0.5, abs=0.01)
    for name, share in told.zeros.shares.items():
        matrix = slim.read(name)
        assert (matrix == 0).mean() == pytest.approx(share, abs=1.0 / min(matrix.shape) + 0.01)
    slim.save(tmp_path / "a")
    load(tmp_path / "a").save(tmp_path / "b")
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_recipe_with_zeros_is_repeated() -> None:
    dense = small()
    whole = Recipe.identity(dense)
    first = prune(dense, whole, calibration=TEXTS, tokens=1024, sparsity=0.4, zeros="wanda")
    told = Recipe.from_dict(first.recipe or {})
    again = prune(dense, told, calibration=TEXTS, tokens=1024)
    assert again.recipe == first.recipe
    for name in first.tensors:
        np.testing.assert_array_equal(again.read(name), first.read(name))


def test_zeros_survive_a_second_pruning() -> None:
    dense = small()
    sparse = prune(dense, Recipe.identity(dense), calibration=TEXTS, tokens=512, pattern="2:4")
    recipe = random_recipe(np.random.default_rng(5), sparse)
    twice = prune(sparse, recipe, calibration=TEXTS, tokens=512)
    assert twice.sparse
    for name in layer_sizes(twice.config):
        matrix = twice.read(name)
        whole = matrix[:, : matrix.shape[1] // 4 * 4].reshape(len(matrix), -1, 4)
        assert ((whole == 0).sum(axis=-1) >= 2).all()


@pytest.mark.parametrize("seed", range(4))
def test_recipes_of_sparse_models_compose(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = small(seed)
    whole = Recipe.identity(dense)
    sparse = prune(dense, whole, repair="none", sparsity=0.5, zeros="magnitude")
    first = random_recipe(rng, sparse)
    half = apply(sparse, first)
    second = random_recipe(rng, half)
    steps, at_once = apply(half, second), apply(sparse, first.then(second))
    assert steps.recipe == at_once.recipe
    assert steps.sparse
    assert at_once.sparse
    told = Recipe.from_dict(steps.recipe or {}).zeros
    assert told is not None
    assert set(told.shares) == set(layer_sizes(steps.config))
    for name in steps.tensors:
        np.testing.assert_array_equal(steps.read(name), at_once.read(name))
    identity = apply(sparse, Recipe.identity(sparse))
    assert identity.recipe == sparse.recipe


def test_interrupted_work_ends_in_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("slimformer.prune.journal"), "RECORD_SECONDS", 0.0)
    dense = small()
    whole = Recipe.identity(dense)

    def stop(what: str, done: int, total: int) -> None:
        if what == "zeros in layers" and done == 2:
            raise KeyboardInterrupt

    settings = {"calibration": TEXTS, "tokens": 1024, "sparsity": 0.5, "sharing": "loss"}
    expected = prune(dense, whole, **settings)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        prune(dense, whole, **settings, state=tmp_path, progress=stop)  # type: ignore[arg-type]
    seen: list[tuple[str, int]] = []
    found = prune(
        dense,
        whole,
        **settings,  # type: ignore[arg-type]
        state=tmp_path,
        progress=lambda what, done, total: seen.append((what, done)),
    )
    assert ("zeros in layers", 0) not in seen
    assert not any(what == "draft zeros" for what, _ in seen)
    for name in expected.tensors:
        np.testing.assert_array_equal(found.read(name), expected.read(name))


def test_magnitudes_need_no_text() -> None:
    dense = small()
    bare = dataclasses.replace(dense, tokenizer=None)
    sparse = prune(
        bare, Recipe.identity(bare), repair="none", sparsity=0.5, zeros="magnitude", sharing="even"
    )
    for name, size in layer_sizes(dense.config).items():
        kept = sparse.read(name) != 0
        assert (~kept).sum() == round(size / 2)
        np.testing.assert_array_equal(sparse.read(name)[kept], dense.read(name)[kept])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, "sparsity: expected a share"),
        ({"sparsity": -0.1}, "sparsity: expected a share"),
        ({"sparsity": float("nan")}, "sparsity: expected a share"),
        ({"pattern": "1x16"}, "expected a sparsity beside it"),
        ({"pattern": "2:4", "sparsity": 0.6}, "which the pattern 2:4 comes to"),
        ({"pattern": "4:2"}, "pattern: expected"),
        ({"sparsity": 0.5, "zeros": "random"}, "zeros: expected one of"),
        ({"sparsity": 0.5, "vocabulary_sparsity": 1.0}, "vocabulary_sparsity: expected"),
        ({"sparsity": 0.5, "sharing": "odd"}, "sharing: expected one of"),
    ],
)
def test_wishes_that_cannot_be(settings: dict[str, object], message: str) -> None:
    dense = small()
    with pytest.raises(ConfigError, match=message):
        prune(dense, Recipe.identity(dense), calibration=TEXTS, **settings)  # type: ignore[arg-type]

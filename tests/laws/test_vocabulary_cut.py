"""A model with fewer tokens says of those that it has what the whole model says of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune.cases import random_model, random_rows, seeds
from reference.engines import TIERS
from slimformer.checkpoint import Checkpoint
from slimformer.engine import Engine
from slimformer.prune import Recipe, apply


def cut(model: Checkpoint, rows: tuple[int, ...]) -> Checkpoint:
    return apply(model, dataclasses.replace(Recipe.identity(model), vocabulary=rows))


@pytest.mark.parametrize("tier", TIERS)
@settings(max_examples=10)
@given(seed=seeds, weights=st.sampled_from(["f32", "bf16", "int8", "int4"]))
def test_logits_of_tokens_that_stay_are_the_same_bits(tier: str, seed: int, weights: str) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    rows = random_rows(rng, model)
    tokens = rng.integers(0, len(rows), 20)
    engines = [
        Engine(one, weights=weights, tier=tier, threads=2)  # type: ignore[arg-type]
        for one in (model, cut(model, rows))
    ]
    whole, few = (
        engine.forward([engine.session()], [ids], logits="all")
        for engine, ids in zip(engines, (np.asarray(rows)[tokens], tokens), strict=True)
    )
    np.testing.assert_array_equal(few, whole[:, list(rows)])


def test_tied_rows_are_cut_once() -> None:
    rng = np.random.default_rng(0)
    model = random_model(rng, ragged=False)
    table = model.tensors["embedding.weight"]
    for tied in (True, False):
        config = dataclasses.replace(model.config, tied_head=tied)
        tensors = {name: model.tensors.get(name, table) for name in config.tensor_shapes()}
        one = dataclasses.replace(model, config=config, tensors=tensors)
        rows = random_rows(rng, one)
        small = cut(one, rows)
        lost = (config.vocab_size - len(rows)) * config.n_channels * (1 if tied else 2)
        assert config.parameters() - small.config.parameters() == lost
        assert one.nbytes - small.nbytes == 4 * lost

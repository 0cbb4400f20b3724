"""Rewritten models say what they said before, and cost what they are told to cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from reference.engines import TOLERANCE, difference, seeds
from reference.models import random_checkpoint
from reference.ragged_llamas import ragged_llama
from slimformer.checkpoint import Checkpoint
from slimformer.checkpoint.families import by_gguf_architecture, by_name
from slimformer.checkpoint.gguf_shape import gguf_shape
from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinkConfig,
    ModelConfig,
    RopeConfig,
)
from slimformer.engine import Engine
from slimformer.errors import UnsupportedModelError
from slimformer.export.attention import Groups, even_groups
from slimformer.export.blocks import Change, blocks_of, layers_of, pack_layers
from slimformer.export.rewrite import ragged_layers, uniform_layers

Rewriting = Callable[[Checkpoint], tuple[Checkpoint, list[Change]]]
REWRITINGS: tuple[Rewriting, ...] = (ragged_layers, uniform_layers)


def logits(checkpoint: Checkpoint, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
    engine = Engine(checkpoint, weights="f32", threads=1)
    return np.asarray(engine.forward([engine.session()], [tokens], logits="all"))


def attention(sizes: Sequence[int], **changes: Any) -> AttentionConfig:
    """KV heads that are read by so many query heads each, in order."""
    shape = AttentionConfig(
        n_heads=sum(sizes),
        n_kv_heads=len(sizes),
        head_dim=8,
        value_dim=8,
        q_to_kv=tuple(kv for kv, size in enumerate(sizes) for _ in range(size)),
        scale=8**-0.5,
        rope=RopeConfig(8),
    )
    return dataclasses.replace(shape, **changes)


def model(*layers: LayerConfig) -> Checkpoint:
    config = ModelConfig(
        family="llama",
        vocab_size=50,
        n_channels=24,
        norm_divisor=24,
        norm_eps=1e-5,
        tied_head=True,
        max_positions=64,
        layers=layers,
    )
    return random_checkpoint(config, 1)


@pytest.mark.parametrize("rewrite", REWRITINGS)
@given(seed=seeds)
def test_the_model_says_the_same(rewrite: Rewriting, seed: int) -> None:
    before = ragged_llama(seed, tokenizer=False)
    after, changes = rewrite(before)
    tokens = np.random.default_rng(seed).integers(0, before.config.vocab_size, 40).tolist()
    assert difference(logits(after, tokens), logits(before, tokens)) < TOLERANCE
    added = sum(change.parameters for change in changes)
    assert after.config.parameters() == before.config.parameters() + added


@given(seed=seeds)
def test_the_shapes_can_be_said(seed: int) -> None:
    before = ragged_llama(seed, tokenizer=False)
    ragged, _ = ragged_layers(before)
    assert gguf_shape(by_gguf_architecture("deci", "test"), ragged.config) is not None
    uniform, _ = uniform_layers(before)
    llama = by_name("llama", "test")
    assert gguf_shape(llama, uniform.config) is not None
    assert llama.to_huggingface(uniform.config) is not None


def test_a_rewriting_of_what_can_be_said_changes_nothing() -> None:
    before = model(
        LayerConfig(attention((2, 2)), FfnConfig(5)),
        LayerConfig(LinkConfig("full"), FfnConfig(7)),
        LayerConfig(None, FfnConfig(3)),
        LayerConfig(attention((3,)), FfnConfig(1)),
    )
    after, changes = ragged_layers(before)
    assert changes == []
    assert after.config == before.config
    assert all(after.tensors[name] is before.tensors[name] for name in before.tensors)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((3, 3, 3), Groups(3, 3)),
        ((3, 3, 2), Groups(3, 3)),  # one head of zeros
        ((1, 1, 5), Groups(7, 1)),  # copies of the last KV head, instead of eight heads of zeros
        ((4, 2), Groups(3, 2)),  # one copy, no zeros
        ((1,), Groups(1, 1)),
    ],
)
def test_groups_are_made_even_at_the_least_cost(sizes: tuple[int, ...], expected: Groups) -> None:
    assert even_groups([attention(sizes)]) == expected


def test_groups_of_all_layers_fit_the_widest_and_divide_the_width() -> None:
    layers = [attention((3, 3, 2)), attention((2,)), attention((1, 1, 1, 1))]
    assert even_groups(layers) == Groups(5, 2)
    assert even_groups(layers, divides=32) == Groups(8, 1)
    with pytest.raises(UnsupportedModelError, match="divides the width of 7"):
        even_groups(layers, divides=7)


def test_sub_blocks_are_packed_into_the_fewest_layers() -> None:
    checkpoint = model(
        LayerConfig(attention((1,)), None),
        LayerConfig(None, FfnConfig(2)),
        LayerConfig(None, FfnConfig(3)),
        LayerConfig(attention((1,)), LinkConfig("full")),
        LayerConfig(None, None),
    )
    places = [
        (first and first.where, second and second.where)
        for first, second in pack_layers(blocks_of(layers_of(checkpoint)))
    ]
    assert places == [
        ("layer 0 attention", "layer 1 ffn"),
        (None, "layer 2 ffn"),
        ("layer 3 attention", None),
        ("layer 3 ffn", None),
    ]


def test_a_low_rank_is_a_matrix_only_where_that_is_smaller() -> None:
    small, large = LinkConfig("low_rank", rank=2), LinkConfig("low_rank", rank=20)
    after, changes = ragged_layers(model(LayerConfig(small, None), LayerConfig(large, None)))
    assert [change.what for change in changes if "link" in change.what] == [
        "low-rank link made neurons with open gates",
        "low-rank link made a full matrix",
    ]
    assert [layer.ffn for layer in after.config.layers] == [FfnConfig(2, bias=True), FfnConfig(1)]
    assert after.config.layers[1].attention == LinkConfig("full")


@pytest.mark.parametrize("rewrite", REWRITINGS)
def test_constants_are_biases_of_what_they_follow(rewrite: Rewriting) -> None:
    constant = LinkConfig("constant")
    biased = FfnConfig(3, bias=True)
    before = model(
        LayerConfig(constant, FfnConfig(3)),
        LayerConfig(constant, biased),
        LayerConfig(constant, None),
        LayerConfig(attention((1,)), constant),
    )
    after, changes = rewrite(before)
    told = [(change.where, change.what) for change in changes if "constant" in change.what]
    assert told == [
        ("layer 1 attention", "constant link made a bias"),
        ("layer 2 attention", "constant link made a bias"),
        ("layer 3 ffn", "constant link made a bias"),
        ("layer 0 attention", "constant link made the output bias of a neuron of zeros"),
    ]
    assert [layer.ffn is not None for layer in after.config.layers] == [True] * 4
    tokens = list(range(40))
    assert difference(logits(after, tokens), logits(before, tokens)) < TOLERANCE
    added = sum(change.parameters for change in changes)
    assert after.config.parameters() == before.config.parameters() + added


@pytest.mark.parametrize(
    ("second", "ragged", "uniform"),
    [
        (
            attention((1,), rope=None),
            "layer 1 attention: 0 of 8 entries of a head are rotated",
            "they still differ in rope",
        ),
        (attention((1,), rope=RopeConfig(4)), "4 of 8 entries", "they still differ in rope"),
        (attention((1,), rope=RopeConfig(8, theta=500.0)), "turn at frequencies", "differ in rope"),
        (attention((1,), head_dim=6, rope=RopeConfig(6)), *["heads of 6 turn at frequencies"] * 2),
        (attention((1,), value_dim=9), *["value heads of 9 are wider than the query heads"] * 2),
    ],
)
def test_what_has_no_equivalent_is_refused_by_name(
    second: AttentionConfig, ragged: str, uniform: str
) -> None:
    checkpoint = model(LayerConfig(attention((2,)), None), LayerConfig(second, None))
    with pytest.raises(UnsupportedModelError, match=ragged):
        ragged_layers(checkpoint)
    with pytest.raises(UnsupportedModelError, match=uniform):
        uniform_layers(checkpoint)


@pytest.mark.parametrize(
    ("rewrite", "fixed"), [(ragged_layers, 0), (ragged_layers, 2), (uniform_layers, 0)]
)
def test_heads_that_lost_pairs_are_as_wide_as_they_were_trained(
    rewrite: Rewriting, fixed: int
) -> None:
    rope = RopeConfig(8)
    sizes = {"head_dim": 4 + fixed, "value_dim": 6, "scale": (8 + fixed) ** -0.5}
    cut = [attention((2,), rope=rope.only(pairs), **sizes) for pairs in ((0, 3), (1, 2))]
    before = model(*(LayerConfig(one, FfnConfig(3)) for one in cut))
    after, changes = rewrite(before)
    assert [change.what for change in changes] == ["heads widened"] * 2
    for layer in after.config.layers:
        assert isinstance(layer.attention, AttentionConfig)
        assert (layer.attention.head_dim, layer.attention.rope) == (8 + fixed, rope)
    tokens = list(range(40))
    assert difference(logits(after, tokens), logits(before, tokens)) < TOLERANCE


def test_half_as_wide_heads_go_to_the_pairs_of_their_frequencies() -> None:
    narrow = attention((1,), head_dim=4, value_dim=3, rope=RopeConfig(4), scale=0.7)
    before = model(LayerConfig(attention((2,)), FfnConfig(3)), LayerConfig(narrow, FfnConfig(3)))
    after, changes = ragged_layers(before)
    assert [(change.where, change.what) for change in changes] == [
        ("layer 1 attention", "heads widened")
    ]
    tokens = list(range(40))
    assert difference(logits(after, tokens), logits(before, tokens)) < TOLERANCE

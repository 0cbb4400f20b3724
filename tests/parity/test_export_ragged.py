"""Ragged models of every family in transformers, with the modelling file and filled up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity import test_random_encoders as encoders
from parity.test_gguf_families import has_experts
from parity.test_random_families import (
    CASES,
    Case,
    assert_same,
    prefill_and_decode,
    random_tokens,
    write_random,
)
from reference.peers import open_in_transformers, transformers_logits
from slimformer.checkpoint import Checkpoint, load
from slimformer.config import AttentionConfig
from slimformer.engine import Engine
from slimformer.errors import UnsupportedModelError
from slimformer.export import export
from slimformer.prune import explicit, prune
from slimformer.prune.recipe import part_count

each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def ragged(dense: Checkpoint, *, fewer_experts: bool = True) -> Checkpoint:
    """Uneven heads, fewer neurons and experts in one layer, one attention and one FFN less.

    And fewer rotary pairs, where the family can do without some.
    """
    units: dict[str, Any] = {"neurons": {1: tuple(range(3, 30))}}
    units["rotary_pairs"] = {
        index: (index, index + 1)
        for index, layer in enumerate(dense.config.layers)
        if isinstance(layer.attention, AttentionConfig)
        and part_count(layer.attention, "rotary_pairs") > index + 1
    }
    if has_experts(dense):
        del units["neurons"]
        units["expert_neurons"] = {1: {0: (0, 2, 7), 1: (4,)}}
        if fewer_experts:
            units["experts"] = {3: (1,)}
    recipe = explicit(dense, heads={1: (0, 2, 3)}, drop_attention=(0,), drop_ffn=(2,), **units)
    return prune(dense, recipe, repair="none")


def count(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


@each
def test_with_the_modelling_file(case: Case, tmp_path: Path) -> None:
    """Logits, a generation with the cache, and the same again after ``save_pretrained``."""
    import torch

    write_random(case, tmp_path / "dense")
    slim = ragged(load(tmp_path / "dense"))
    tokens = random_tokens(slim)
    expected = prefill_and_decode(slim, tokens)
    export(slim, tmp_path / "slim", to="huggingface")
    peer = open_in_transformers(tmp_path / "slim", trust_remote_code=True)
    assert type(peer).__name__ == "SlimformerForCausalLM"
    assert_same(transformers_logits(peer, tokens), expected)

    prompt = tokens[:90]
    ids = peer.generate(
        torch.tensor([prompt]), max_new_tokens=15, do_sample=False, eos_token_id=None
    )
    ours = Engine(slim, weights="f32").generate_ids(prompt, max_tokens=15)
    assert ids[0, len(prompt) :].tolist() == ours

    peer.save_pretrained(tmp_path / "again")
    again = open_in_transformers(tmp_path / "again", trust_remote_code=True)
    assert_same(transformers_logits(again, tokens), expected)
    assert count(peer) == count(again) == slim.config.parameters()
    assert load(tmp_path / "again").config == slim.config


@each
def test_filled_up(case: Case, tmp_path: Path) -> None:
    dense_peer = write_random(case, tmp_path / "dense")
    slim = ragged(load(tmp_path / "dense"), fewer_experts=False)
    tokens = random_tokens(slim)
    done = export(slim, tmp_path / "slim", to="huggingface", pad=True)
    peer = open_in_transformers(tmp_path / "slim")
    assert type(peer) is type(dense_peer)
    assert count(peer) == done.parameters == slim.config.parameters() + done.added_parameters
    assert_same(transformers_logits(peer, tokens), prefill_and_decode(slim, tokens))


@pytest.mark.parametrize("name", encoders.CASES)
def test_encoders_with_the_modelling_file(name: str, tmp_path: Path) -> None:
    """States of padded texts, as a model by itself and saved again."""
    import torch
    from transformers import AutoModel

    encoders.write_random(name, tmp_path / "dense")
    slim = ragged(load(tmp_path / "dense"))
    texts = encoders.random_texts(slim)
    expected = encoders.states(slim, texts)
    export(slim, tmp_path / "slim", to="huggingface")
    for folder in ("slim", "again"):
        peer = AutoModel.from_pretrained(
            tmp_path / folder, dtype=torch.float32, trust_remote_code=True
        )
        assert type(peer).__name__ == "SlimformerModel"
        assert count(peer) == slim.config.parameters()
        assert_same(encoders.peer_states(peer.eval(), texts), expected)
        assert load(tmp_path / folder).config == slim.config
        peer.save_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(encoders.states(load(tmp_path / "again"), texts), expected)


@pytest.mark.parametrize("name", encoders.CASES)
def test_encoders_filled_up(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    encoders.write_random(name, tmp_path / "dense")
    dense = load(tmp_path / "dense")
    recipe = explicit(dense, heads={1: (0, 2, 3)}, neurons={2: tuple(range(20))})
    slim = prune(dense, recipe, repair="none")
    done = export(slim, tmp_path / "slim", to="huggingface", pad=True)
    assert done.added_parameters > 0
    peer = AutoModel.from_pretrained(tmp_path / "slim", dtype=torch.float32)
    assert type(peer).__name__ == f"{name}Model"
    texts = encoders.random_texts(slim)
    assert_same(encoders.peer_states(peer.eval(), texts), encoders.states(slim, texts))
    gone = prune(dense, explicit(dense, drop_attention=(0,)), repair="none")
    with pytest.raises(UnsupportedModelError, match="no sub-block of zeros leaves the stream"):
        export(gone, tmp_path / "gone", to="huggingface", pad=True)

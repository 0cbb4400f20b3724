"""Random small Llamas written by transformers and read here, and the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.peers import Array, open_in_transformers, transformers_logits
from slimformer.checkpoint import Checkpoint, load, save
from slimformer.config import AttentionConfig, FfnConfig
from slimformer.engine import Engine
from slimformer.prune import explicit, prune

TOLERANCE = 1e-4  # of the largest logit: float32 sums of at most a hundred terms, four layers deep
LENGTH = 70  # longer than a page of the KV cache and than the original context below
ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
    {
        "rope_type": "llama3",
        "rope_theta": 50000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
)


def write_random_llama(seed: int, folder: Path) -> Any:
    """Save a random model as transformers does.

    The width is a multiple of every number of heads that a test leaves, which transformers
    insists on; all other sizes are odd on purpose.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    rng = np.random.default_rng(seed)
    kv_heads = int(rng.integers(1, 4))
    config = LlamaConfig(
        vocab_size=int(rng.integers(50, 200)),
        hidden_size=6 * kv_heads * int(rng.integers(1, 6)),
        intermediate_size=int(rng.integers(3, 90)),
        num_hidden_layers=int(rng.integers(2, 5)),
        num_attention_heads=kv_heads * int(rng.integers(1, 4)),
        num_key_value_heads=kv_heads,
        head_dim=2 * int(rng.integers(2, 20)),
        max_position_embeddings=256,
        rms_norm_eps=float(rng.choice([1e-5, 1e-6])),
        rope_parameters=ROPES[seed % len(ROPES)],
        attention_bias=bool(rng.integers(2)),
        mlp_bias=bool(rng.integers(2)),
        tie_word_embeddings=bool(rng.integers(2)),
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "norm" in name:
                values.normal_(1.0, 0.1)
            else:
                values.normal_(0.0, 0.5 if values.ndim == 1 else values.shape[1] ** -0.5)
    model.save_pretrained(folder)
    return model.eval()


def our_logits(checkpoint: Checkpoint, tokens: list[int]) -> Array:
    """Logits of every position, float32 [n_tokens, vocab]."""
    engine = Engine(checkpoint, weights="f32")
    return np.asarray(engine.forward([engine.session()], [tokens], logits="all"))


def random_tokens(checkpoint: Checkpoint, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [int(token) for token in rng.integers(0, checkpoint.config.vocab_size, size=LENGTH)]


def assert_same(ours: Array, theirs: Array) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * float(np.abs(theirs).max()))


@pytest.mark.parametrize("seed", range(12))
def test_a_folder_of_transformers_runs_here(seed: int, tmp_path: Path) -> None:
    peer = write_random_llama(seed, tmp_path / "theirs")
    checkpoint = load(tmp_path / "theirs")
    tokens = random_tokens(checkpoint, seed)
    assert_same(our_logits(checkpoint, tokens), transformers_logits(peer, tokens))


@pytest.mark.parametrize("seed", range(6))
def test_a_uniformly_pruned_folder_opens_in_transformers(seed: int, tmp_path: Path) -> None:
    """One layer and one neuron of every layer go, and the last query head of every KV group."""
    write_random_llama(seed, tmp_path / "theirs")
    dense = load(tmp_path / "theirs")
    heads, neurons = {}, {}
    for index, layer in enumerate(dense.config.layers):
        assert isinstance(layer.attention, AttentionConfig)
        assert isinstance(layer.ffn, FfnConfig)
        groups = layer.attention.n_kv_heads
        per_group = layer.attention.n_heads // groups
        if per_group > 1:
            heads[index] = tuple(
                head for head in range(layer.attention.n_heads) if head % per_group < per_group - 1
            )
        neurons[index] = tuple(range(1, layer.ffn.n_neurons))
    heads.pop(1, None)
    neurons.pop(1, None)
    recipe = explicit(dense, drop_layers=(1,), heads=heads, neurons=neurons)
    slim = prune(dense, recipe, repair="none")
    save(slim, tmp_path / "ours")
    tokens = random_tokens(slim, seed)
    peer = open_in_transformers(tmp_path / "ours")
    assert len(peer.model.layers) == len(dense.config.layers) - 1
    assert_same(our_logits(slim, tokens), transformers_logits(peer, tokens))

"""Random ragged Llamas, exported: llama.cpp and transformers say what this engine says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.peers import (
    Array,
    llama_cpp_logits,
    open_in_llama_cpp,
    open_in_transformers,
    transformers_logits,
)
from reference.ragged_llamas import ragged_llama
from slimformer.checkpoint import Checkpoint, load
from slimformer.engine import Engine
from slimformer.export import export

TOLERANCE = 1e-4  # of the largest logit: float32 sums of at most a hundred terms, five layers deep
LENGTH = 70  # longer than the context that the scaled rotations were made for
SEEDS = range(10)


def our_logits(checkpoint: Checkpoint, tokens: list[int]) -> Array:
    engine = Engine(checkpoint, weights="f32")
    return np.asarray(engine.forward([engine.session()], [tokens], logits="all"))


def some_tokens(seed: int, length: int = LENGTH) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 300, size=length)]


def assert_same(theirs: Array, ours: Array) -> None:
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE * float(np.abs(ours).max()))


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_llama_cpp(seed: int, pad: bool, tmp_path: Path) -> None:
    checkpoint, tokens = ragged_llama(seed), some_tokens(seed)
    export(checkpoint, tmp_path / "model.gguf", to="gguf", dtype="f32", pad=pad)
    peer = open_in_llama_cpp(tmp_path / "model.gguf", context=128)
    assert peer.metadata["general.architecture"] in (("llama",) if pad else ("llama", "deci"))
    assert_same(llama_cpp_logits(peer, tokens), our_logits(checkpoint, tokens))


def test_llama_cpp_generates_token_by_token(tmp_path: Path) -> None:
    checkpoint, tokens = ragged_llama(7), some_tokens(7)
    export(checkpoint, tmp_path / "model.gguf", to="gguf", dtype="f32")
    peer = open_in_llama_cpp(tmp_path / "model.gguf", context=128)
    for token in tokens:
        peer.eval([token])
    assert_same(np.array(peer.scores[: len(tokens)]), our_logits(checkpoint, tokens))


@pytest.mark.parametrize("seed", SEEDS)
def test_transformers_with_the_modelling_file(seed: int, tmp_path: Path) -> None:
    """Logits, a generation with the cache, and the same again after ``save_pretrained``."""
    checkpoint, tokens = ragged_llama(seed, tokenizer=False), some_tokens(seed)
    expected = our_logits(checkpoint, tokens)
    export(checkpoint, tmp_path / "exported", to="huggingface")
    peer = open_in_transformers(tmp_path / "exported", trust_remote_code=True)
    assert_same(transformers_logits(peer, tokens), expected)
    ours = Engine(checkpoint, weights="f32").generate_ids(tokens[:20], max_tokens=12)
    assert generated(peer, [tokens[:20]]) == [ours]

    peer.save_pretrained(tmp_path / "again")
    again = open_in_transformers(tmp_path / "again", trust_remote_code=True)
    assert_same(transformers_logits(again, tokens), expected)
    assert load(tmp_path / "again").config == checkpoint.config
    sizes = [sum(p.numel() for p in model.parameters()) for model in (peer, again)]
    assert sizes == [checkpoint.config.parameters()] * 2


def generated(peer: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Twelve greedy tokens after each prompt, shorter prompts padded on the left."""
    import torch

    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    seen = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    ids = peer.generate(
        torch.tensor(rows),
        attention_mask=torch.tensor(seen),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return [row[longest:].tolist() for row in ids]


def test_transformers_generates_for_a_padded_batch(tmp_path: Path) -> None:
    checkpoint = ragged_llama(5)
    export(checkpoint, tmp_path / "model", to="huggingface")
    peer = open_in_transformers(tmp_path / "model", trust_remote_code=True)
    prompts = [some_tokens(1, 5), some_tokens(2, 23), some_tokens(3, 1)]
    assert generated(peer, prompts) == [row for p in prompts for row in generated(peer, [p])]


def test_transformers_trains_the_modelling_file(tmp_path: Path) -> None:
    """A loss that can be differentiated, down to every weight that there is."""
    import torch

    checkpoint = ragged_llama(5)
    export(checkpoint, tmp_path / "model", to="huggingface")
    peer = open_in_transformers(tmp_path / "model", trust_remote_code=True)
    tokens = torch.tensor([some_tokens(1)])
    loss = peer(tokens, labels=tokens).loss
    loss.backward()
    (scored,) = Engine(checkpoint, weights="f32").score([tokens[0].tolist()])
    assert float(loss.detach()) == pytest.approx(-float(np.mean(scored)), rel=1e-4)
    assert all(weight.grad is not None for weight in peer.parameters())


@pytest.mark.parametrize("seed", SEEDS)
def test_transformers_without_it_when_padded(seed: int, tmp_path: Path) -> None:
    checkpoint, tokens = ragged_llama(seed), some_tokens(seed)
    result = export(checkpoint, tmp_path / "model", to="huggingface", pad=True)
    peer = open_in_transformers(tmp_path / "model")
    assert type(peer).__name__ == "LlamaForCausalLM"
    assert sum(weight.numel() for weight in peer.parameters()) == result.parameters
    assert_same(transformers_logits(peer, tokens), our_logits(checkpoint, tokens))

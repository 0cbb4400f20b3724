"""Random small models of every family, written by transformers and read here, and back again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.peers import PLAIN, Array, open_in_transformers, transformers_logits
from slimformer.checkpoint import Checkpoint, load, save
from slimformer.config import AttentionConfig, FfnConfig, RoutedFfnConfig
from slimformer.engine import Engine
from slimformer.prune import explicit, prune, surgery
from slimformer.prune.masks import to_mask

TOLERANCE = 1e-4  # of the largest logit: float32 sums of at most a hundred terms, four layers deep
LENGTH = 150  # longer than a page of the KV cache and than every window below


@dataclasses.dataclass(frozen=True)
class Case:
    """A class of transformers and the settings of a small model of it."""

    name: str
    architecture: str
    settings: Mapping[str, Any]


SIZES = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
HEAD = {"head_dim": 10}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
PHI3 = {**SIZES, "hidden_size": 32, "original_max_position_embeddings": 100}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.2, 2.5, 4.0],
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
}
WINDOWED = {"use_sliding_window": True, "sliding_window": 29, "max_window_layers": 1}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 11}


def scaled(kind: str, **settings: Any) -> dict[str, Any]:
    """A Llama with heads of eight pairs and a scaling of its rotation."""
    rope = {"rope_type": kind, "rope_theta": 1e3, **settings}
    return {**SIZES, "head_dim": 16, "rope_parameters": rope}


YARN = {"factor": 4.0, "original_max_position_embeddings": 64}

CASES = (
    Case("llama, linear", "Llama", scaled("linear", factor=2.5)),
    Case("llama, dynamic", "Llama", scaled("dynamic", factor=2.0)),
    Case("llama, yarn", "Llama", scaled("yarn", **YARN)),
    Case(
        "llama, yarn with all settings",
        "Llama",
        scaled("yarn", **YARN, beta_fast=8, beta_slow=2, mscale=1.3, mscale_all_dim=0.7)
        | {"attention_bias": True},
    ),
    Case("qwen3, yarn", "Qwen3", scaled("yarn", **YARN, attention_factor=1.4, truncate=False)),
    Case("phi3, longrope", "Phi3", {**PHI3, "rope_parameters": LONG}),
    Case(
        "phi3, longrope, short",
        "Phi3",
        {**PHI3, "original_max_position_embeddings": 160, "rope_parameters": LONG},
    ),
    Case("mistral", "Mistral", {**SIZES, **HEAD, "sliding_window": 41}),
    Case("mistral, all seen", "Mistral", {**SIZES, "sliding_window": None}),
    Case("qwen2", "Qwen2", {**SIZES, "tie_word_embeddings": True}),
    Case("qwen2, windows", "Qwen2", {**SIZES, **WINDOWED}),
    Case("qwen3", "Qwen3", {**SIZES, **HEAD}),
    Case("qwen3, biases", "Qwen3", {**SIZES, **HEAD, **WINDOWED, "attention_bias": True}),
    Case("smollm3", "SmolLM3", {**SIZES, "no_rope_layers": [1, 0, 1, 0]}),
    Case("smollm3, every fourth", "SmolLM3", {**SIZES, "mlp_bias": True}),
    Case("gemma", "Gemma", {**SIZES, **HEAD}),
    Case(
        "gemma2",
        "Gemma2",
        {
            **SIZES,
            **HEAD,
            "query_pre_attn_scalar": 12,
            "sliding_window": 33,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    Case("gemma3", "Gemma3", {**SIZES, **HEAD, "sliding_window": 33, "num_hidden_layers": 7}),
    Case(
        "gemma3, scaled",
        "Gemma3",
        {
            **SIZES,
            **HEAD,
            "sliding_window": 33,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    ),
    Case("phi3", "Phi3", {**SIZES, "sliding_window": 31}),
    Case(
        "phi3, partial rotation",
        "Phi3",
        {
            **SIZES,
            "hidden_size": 32,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    Case("olmo2", "Olmo2", SIZES),
    Case("olmo2, biases", "Olmo2", {**SIZES, "attention_bias": True, "num_key_value_heads": 4}),
    Case(
        "gpt2",
        "GPT2",
        {"vocab_size": 97, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 256},
    ),
    Case(
        "gpt_neox",
        "GPTNeoX",
        {
            **SIZES,
            "hidden_size": 32,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.25,
            },
        },
    ),
    Case(
        "gpt_neox, in turn", "GPTNeoX", {**SIZES, "hidden_size": 32, "use_parallel_residual": False}
    ),
    Case("mixtral", "Mixtral", {**SIZES, **HEAD, "num_local_experts": 3}),
    Case(
        "mixtral, windows",
        "Mixtral",
        {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 29},
    ),
    Case("qwen3_moe", "Qwen3Moe", {**SIZES, **HEAD, **EXPERTS, "norm_topk_prob": True}),
    Case(
        "qwen3_moe, windows and biases",
        "Qwen3Moe",
        {**SIZES, **HEAD, **EXPERTS, **WINDOWED, "attention_bias": True},
    ),
    Case("olmoe", "Olmoe", {**SIZES, "num_experts": 6, "num_experts_per_tok": 3}),
    Case(
        "olmoe, biases",
        "Olmoe",
        {
            **SIZES,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attention_bias": True,
            "norm_topk_prob": True,
        },
    ),
    Case("opt", "OPT", {**SIZES, "ffn_dim": 37, "word_embed_proj_dim": 24}),
)

each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def write_random(case: Case, folder: Path) -> Any:
    """Save a random model as transformers does."""
    import torch
    import transformers

    prefix = case.architecture
    settings = {**NO_TOKENS, **case.settings}
    config = getattr(transformers, f"{prefix}TextConfig", None) or getattr(
        transformers, f"{prefix}Config"
    )
    kind = getattr(transformers, f"{prefix}ForCausalLM", None) or getattr(
        transformers, f"{prefix}LMHeadModel"
    )
    torch.manual_seed(len(case.name))
    model = kind._from_config(config(**settings), **PLAIN)
    with torch.no_grad():
        for name, values in model.named_parameters():
            norm = "norm" in name or "ln_" in name
            if norm and name.endswith("weight"):
                values.normal_(0.0 if prefix.startswith("Gemma") else 1.0, 0.1)
            else:
                values.normal_(0.0, 0.3 if values.ndim == 1 else min(values.shape) ** -0.5)
    model.save_pretrained(folder)
    return model.eval()


def random_tokens(checkpoint: Checkpoint) -> list[int]:
    rng = np.random.default_rng(5)
    return [int(token) for token in rng.integers(0, checkpoint.config.vocab_size, size=LENGTH)]


def prefill_and_decode(checkpoint: Checkpoint, tokens: list[int]) -> Array:
    """Logits of every position, [n_tokens, vocab]: most of a text at once, the rest one by one."""
    engine = Engine(checkpoint, weights="f32", threads=1)
    session = engine.session_for(len(tokens))
    begun = engine.forward([session], [tokens[:-20]], logits="all")
    return np.concatenate([begun, [session.extend([token]) for token in tokens[-20:]]])


def assert_same(ours: Array, theirs: Array) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * float(np.abs(theirs).max()))


@each
def test_what_transformers_wrote_runs_here_and_opens_there_again(
    case: Case, tmp_path: Path
) -> None:
    peer = write_random(case, tmp_path / "theirs")
    checkpoint = load(tmp_path / "theirs")
    tokens = random_tokens(checkpoint)
    expected = transformers_logits(peer, tokens)
    assert_same(prefill_and_decode(checkpoint, tokens), expected)
    save(checkpoint, tmp_path / "ours")
    read = load(tmp_path / "ours")
    assert read.config == checkpoint.config
    assert read.fingerprint == checkpoint.fingerprint
    again = open_in_transformers(tmp_path / "ours")
    assert type(again) is type(peer)
    assert_same(transformers_logits(again, tokens), expected)


@each
def test_uniformly_pruned_it_opens_in_transformers(case: Case, tmp_path: Path) -> None:
    """Neurons and an expert of every layer go, and a layer: what plain settings can say."""
    write_random(case, tmp_path / "theirs")
    dense = load(tmp_path / "theirs")
    n_layers = len(dense.config.layers)
    neurons = {
        index: tuple(range(1, layer.ffn.n_neurons - 4))
        for index, layer in enumerate(dense.config.layers)
        if isinstance(layer.ffn, FfnConfig) and index < n_layers - 1
    }
    routed = {
        index: layer.ffn
        for index, layer in enumerate(dense.config.layers)
        if isinstance(layer.ffn, RoutedFfnConfig)
    }
    recipe = explicit(
        dense,
        drop_layers=(n_layers - 1,),
        neurons=neurons,
        experts={index: range(1, len(ffn.experts)) for index, ffn in routed.items()},
        expert_neurons={
            index: {expert: range(index, 7 + index) for expert in range(len(ffn.experts))}
            for index, ffn in routed.items()
        },
    )
    slim = prune(dense, recipe, repair="none")
    save(slim, tmp_path / "ours")
    tokens = random_tokens(slim)
    peer = open_in_transformers(tmp_path / "ours")
    assert_same(prefill_and_decode(slim, tokens), transformers_logits(peer, tokens))


@each
def test_masked_equals_packed_after_pruning_every_structure(case: Case, tmp_path: Path) -> None:
    """A head, a KV group, neurons, experts, both kinds of sub-block and a layer; saved, too."""
    write_random(case, tmp_path / "theirs")
    dense = load(tmp_path / "theirs")
    (*_, last) = range(len(dense.config.layers))
    attention = dense.config.layers[last].attention
    assert isinstance(attention, AttentionConfig)
    group = {head for head, kv in enumerate(attention.q_to_kv) if kv == 0}
    without_group = tuple(head for head in range(attention.n_heads) if head not in group)
    heads = {0: (0, 2, 3), last: without_group}
    if isinstance(dense.config.layers[last].ffn, RoutedFfnConfig):
        units = explicit(dense, heads=heads, experts={1: (1,)}, expert_neurons={0: {1: (1, 5, 7)}})
    else:
        units = explicit(dense, heads=heads, neurons={0: (1, 5, 7, 30)})
    recipes = [
        units,
        explicit(dense, drop_attention=(1,), drop_ffn=(last,)),
        explicit(dense, drop_layers=(1,), heads={0: (1, 3)}),
    ]
    tokens = random_tokens(dense)
    engine = Engine(dense, weights="f32", threads=1)
    for number, recipe in enumerate(recipes):
        slim = surgery.apply(dense, recipe)
        masked = engine.session_for(len(tokens), to_mask(recipe, dense.config))
        expected = engine.forward([masked], [tokens], logits="all")
        assert_same(prefill_and_decode(slim, tokens), expected)
        save(slim, tmp_path / str(number))
        read = load(tmp_path / str(number))
        assert read.fingerprint == slim.fingerprint


def test_a_text_that_outgrows_the_short_factors_goes_on_by_the_long_ones(tmp_path: Path) -> None:
    """As transformers has it: all keys are made again, and all that follows turns otherwise."""
    import torch

    (case,) = (case for case in CASES if case.name == "phi3, longrope")
    peer = write_random(case, tmp_path)
    checkpoint = load(tmp_path)
    usual, prompt = checkpoint.config.usual_length, random_tokens(checkpoint)[:90]
    generated = peer.generate(torch.tensor([prompt]), max_new_tokens=25, do_sample=False)
    ours = Engine(checkpoint, weights="f32").generate_ids(prompt, max_tokens=25)
    assert len(prompt) + len(ours) > usual
    assert ours == generated[0, len(prompt) :].tolist()

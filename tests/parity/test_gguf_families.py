"""Random small models of every family that llama.cpp knows, as GGUF: the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference import forward
from reference.gguf_families import write_family
from reference.models import random_checkpoint
from reference.peers import Array
from slimformer.checkpoint import Checkpoint, load
from slimformer.checkpoint.families import by_name
from slimformer.checkpoint.fields import Fields
from slimformer.config import FfnConfig, RoutedFfnConfig
from slimformer.engine import Engine

TOLERANCES = {"silu": 1e-5, "routed": 1e-4, "gelu": 1e-3, "gelu_tanh": 1e-3, "relu": 1e-5}
"""Of the largest logit. llama.cpp takes any GELU from a table of its approximation by a hyperbolic
tangent that rounds argument and value to float16, which is 5e-4 of each; all else is float32.
Routers make exponentials of what their logits are off."""

LENGTH = 90

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 32},
    "gemma2": {
        "head_dim": 32,
        "sliding_window": 33,
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 10.0,
    },
    "gemma3": {"head_dim": 32, "sliding_window": 33},
    "phi3": {"sliding_window": None},
    "olmo2": {},
    "smollm3": {"num_hidden_layers": 4},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "gpt_neox": {"rotary_pct": 0.5},
}


def open_without_vocabulary(path: Path, *, states: bool = False) -> Any:
    """A context of llama.cpp itself: its wrapper insists on a tokenizer.

    ``states``: it gives the hidden states of all tokens, and no logits.
    """
    import llama_cpp

    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
    assert model
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = 256
    options.n_threads = options.n_threads_batch = 1
    options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
    options.flash_attn_type = 0
    options.embeddings = states
    if states:
        options.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
    context = llama_cpp.llama_init_from_model(model, options)
    assert context
    return model, context


def peer_logits(path: Path, tokens: list[int], vocab_size: int) -> Array:
    """Logits of every token, [tokens, vocab]."""
    return peer_rows(path, tokens, vocab_size, states=False)


def peer_rows(path: Path, tokens: list[int], width: int, *, states: bool) -> Array:
    """Logits or hidden states of every token, [tokens, width]."""
    import llama_cpp

    model, context = open_without_vocabulary(path, states=states)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index] = token, index
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        batch.logits[index] = True
    assert llama_cpp.llama_decode(context, batch) == 0
    get = llama_cpp.llama_get_embeddings_ith if states else llama_cpp.llama_get_logits_ith
    rows = [
        np.ctypeslib.as_array(get(context, index), (width,)).copy() for index in range(len(tokens))
    ]
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return np.stack(rows)


def model_of(name: str) -> Checkpoint:
    family = by_name(name, "test")
    settings = {**SIZES, **FAMILIES[name]}
    return random_checkpoint(family.from_huggingface(Fields("test", settings)), 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_agrees(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    source = model_of(name)
    write_family(path, source)
    model = load(path)
    assert model.config == source.config
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, model.config.vocab_size, LENGTH)]
    engine = Engine(model, weights="f32", threads=1)
    ours = engine.forward([engine.session()], [tokens], logits="all")
    theirs = peer_logits(path, tokens, model.config.vocab_size)
    tolerance = TOLERANCES["routed" if has_experts(model) else activation_of(model)] * float(
        np.abs(theirs).max()
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def has_experts(model: Checkpoint) -> bool:
    return any(isinstance(layer.ffn, RoutedFfnConfig) for layer in model.config.layers)


def activation_of(model: Checkpoint) -> str:
    ffns = [ffn for layer in model.config.layers if isinstance(ffn := layer.ffn, FfnConfig)]
    return ffns[0].activation


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3", "gpt2", "gpt_neox"])
def test_its_table_of_gelu_is_all_that_differs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With that table the reference comes to the same, but where a last bit rounds otherwise."""
    approximated = forward.gelu_tanh

    def table(x: Array) -> Array:
        return (
            approximated(x.astype(np.float16).astype(np.float64)).astype(np.float16).astype(x.dtype)
        )

    model = model_of(name)
    write_family(tmp_path / "model.gguf", model)
    monkeypatch.setitem(forward.ACTIVATIONS, activation_of(model), table)
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, model.config.vocab_size, LENGTH)]
    theirs = peer_logits(tmp_path / "model.gguf", tokens, model.config.vocab_size)
    expected = forward.forward(model.config, model.read_f32, tokens)
    error = np.abs(theirs - expected) / np.abs(expected).max()
    assert np.quantile(error, 0.25) < 1e-6

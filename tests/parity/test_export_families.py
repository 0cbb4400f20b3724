"""Random models of every family, exported: other engines say what this one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.test_gguf_families import TOLERANCES, activation_of, has_experts
from parity.test_random_families import CASES, Case, prefill_and_decode, write_random
from reference.peers import llama_cpp_logits, open_in_llama_cpp
from slimformer.checkpoint import Checkpoint, load
from slimformer.config import AttentionConfig
from slimformer.errors import UnsupportedModelError
from slimformer.export import export
from slimformer.prune import explicit, prune

LENGTH = 60

# Scores scaled by something else than the width of a head have no word in GGUF.
HEAD_SCALE = {"query_pre_attn_scalar": 10}
SETTINGS: dict[str, dict[str, Any]] = {
    "olmoe": {"num_key_value_heads": 4},  # in llama.cpp its heads share none
    "gemma2": HEAD_SCALE,
    "gemma3": HEAD_SCALE,
    "gemma3, scaled": {**HEAD_SCALE, "layer_types": ["sliding_attention"] * 4},
    # llama.cpp asks whether its context, not the text, is longer
    "phi3, longrope": {"original_max_position_embeddings": LENGTH - 20},
    "phi3, longrope, short": {"original_max_position_embeddings": 256},
}

REFUSED = {
    "llama, dynamic": "scaling of its rotation",
    "llama, yarn with all settings": "scaling of its rotation",
    "qwen3, yarn": "qk_norm",  # ends of its ramp that are no whole pairs; only Llama's are left
    "mistral": "window",  # its files say llama, which has none
    "qwen2, windows": "window",
    "qwen3, biases": "qk_norm",  # and windows, so that only Llama's words are left
    "smollm3": "entries of a head are rotated",  # every other layer, and not every fourth
    "smollm3, every fourth": "entries of a head are rotated",  # with biases
    "gemma3, scaled": "norm_offset",  # which of its layers have a window is not said
    "phi3": "window",
    "mixtral, windows": "window",
    "qwen3_moe, windows and biases": "window",  # and biases
    "olmoe, biases": "qk_norm",
    "olmo2, biases": "norm_place",
    "opt": "norm",
}
"""What GGUF, or llama.cpp, has no word for: part of the message that says so."""

each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def write(case: Case, folder: Path) -> Checkpoint:
    settings = {**case.settings, **SETTINGS.get(case.name, {})}
    write_random(Case(case.name, case.architecture, settings), folder)
    return load(folder)


def check(checkpoint: Checkpoint, path: Path) -> None:
    """The file is read here as what it was; llama.cpp comes to the same logits."""
    rng = np.random.default_rng(2)
    tokens = [int(token) for token in rng.integers(0, checkpoint.config.vocab_size, LENGTH)]
    expected = prefill_and_decode(checkpoint, tokens)
    again = prefill_and_decode(load(path), tokens)
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-5 * scale)
    theirs = llama_cpp_logits(open_in_llama_cpp(path, context=LENGTH), tokens)
    kind = "routed" if has_experts(checkpoint) else activation_of(checkpoint)
    np.testing.assert_allclose(theirs, expected, rtol=0, atol=TOLERANCES[kind] * scale)


@each
def test_as_it_is(case: Case, tmp_path: Path) -> None:
    checkpoint = write(case, tmp_path / "model")
    if case.name in REFUSED:
        with pytest.raises(UnsupportedModelError, match=REFUSED[case.name]):
            export(checkpoint, tmp_path / "model.gguf", to="gguf")
        return
    done = export(checkpoint, tmp_path / "model.gguf", to="gguf", dtype="f32")
    assert done.changes == []
    check(checkpoint, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "name",
    [
        *("mistral, all seen", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gpt2", "gpt_neox"),
        *("olmo2", "llama, yarn"),
    ],
)
def test_pruned_raggedly_and_filled_up(name: str, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == name)
    dense = write(case, tmp_path / "model")
    attention = dense.config.layers[1].attention
    assert isinstance(attention, AttentionConfig)
    recipe = explicit(dense, heads={1: (0, 2, 3)}, drop_ffn=(2,), neurons={0: tuple(range(20))})
    slim = prune(dense, recipe, repair="none")
    done = export(slim, tmp_path / "model.gguf", to="gguf", dtype="f32", pad=True)
    assert done.added_parameters > 0
    check(slim, tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])
def test_with_fewer_and_narrower_experts(name: str, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == name)
    dense = write(case, tmp_path / "model")
    layers = range(len(dense.config.layers))
    experts = {index: (0, 2) if index % 2 else (1, 2) for index in layers}
    slim = prune(dense, explicit(dense, neurons=8, experts=experts), repair="none")
    export(slim, tmp_path / "model.gguf", to="gguf", dtype="f32")
    check(slim, tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])
def test_with_experts_of_all_widths_filled_up(name: str, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == name)
    dense = write(case, tmp_path / "model")
    narrow: dict[int, dict[int, tuple[int, ...]]] = {
        0: {1: (0, 2, 7)},
        3: {0: (4,), 2: tuple(range(8))},
    }
    recipe = explicit(dense, drop_attention=(1,), drop_ffn=(2,), expert_neurons=narrow)
    slim = prune(dense, recipe, repair="none")
    done = export(slim, tmp_path / "model.gguf", to="gguf", dtype="f32", pad=True)
    assert done.added_parameters > 0
    check(slim, tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["mistral, all seen", "qwen2"])
def test_ragged_kin_of_llama_are_deci_too(name: str, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == name)
    slim = ragged(case, tmp_path / "model")
    export(slim, tmp_path / "model.gguf", to="gguf", dtype="f32")
    check(slim, tmp_path / "model.gguf")


def ragged(case: Case, folder: Path) -> Checkpoint:
    """Uneven heads, one attention and one FFN less."""
    dense = write(case, folder)
    recipe = explicit(dense, heads={1: (0, 2, 3)}, drop_attention=(0,), drop_ffn=(2,))
    return prune(dense, recipe, repair="none")

"""The real model through this engine, transformers and llama.cpp: the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.peers import (
    llama_cpp_logits,
    open_in_llama_cpp,
    open_in_transformers,
    perplexity,
    target_log_probs,
    transformers_logits,
    write_gguf,
)
from slimformer.checkpoint import Checkpoint, load, save
from slimformer.engine import Engine, Mask
from slimformer.prune import explicit, prune

F32_TOLERANCE = 1e-3  # of perplexity: two float32 engines that add in different orders
BF16_TOLERANCE = 5e-3  # of perplexity: weights rounded to 8 bits of mantissa
TIE = 1e-4  # of a logit: closer than the rounding of two float32 engines
REMOVED_LAYERS = (24, 25, 26)

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "The three states of matter are",
    "Dear Sir or Madam,\n\nI am writing to",
    "Water boils at a temperature of",
    "Q: What is 7 times 8?\nA:",
    "In 1969, the first astronauts",
    "The recipe needs two eggs, a cup of flour and",
    "List of planets: Mercury, Venus,",
    "To be, or not to be,",
    "A triangle has three sides, a square has",
    "<|im_start|>user\nTell me a joke.<|im_end|>\n<|im_start|>assistant\n",
    "SELECT name FROM users WHERE",
    "The opposite of hot is",
    "Photosynthesis is the process by which",
    "She opened the door and saw",
    "Les jours de la semaine sont",
    "import numpy as np\n\nx = np.",
    "The main difference between a virus and a bacterium is",
)


@pytest.fixture(scope="module")
def expected(windows: list[list[int]], transformers_model: Any) -> list[np.ndarray]:
    """What transformers gives every target token of every window."""
    return [target_log_probs(transformers_logits(transformers_model, w), w) for w in windows]


def test_perplexity_in_f32(
    real_model: Checkpoint, windows: list[list[int]], expected: list[np.ndarray]
) -> None:
    scored = Engine(real_model, weights="f32").score(windows)
    for ours, theirs in zip(scored, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert perplexity(scored) == pytest.approx(perplexity(expected), rel=F32_TOLERANCE)


def test_perplexity_in_bf16(
    real_model: Checkpoint, windows: list[list[int]], expected: list[np.ndarray]
) -> None:
    scored = Engine(real_model, weights="bf16").score(windows)
    assert perplexity(scored) == pytest.approx(perplexity(expected), rel=BF16_TOLERANCE)


def test_greedy_text(real_model: Checkpoint, transformers_model: Any) -> None:
    """Every generated token is transformers' own choice given the tokens before it."""
    engine = Engine(real_model, weights="f32")
    assert engine.tokenizer is not None
    for prompt in PROMPTS:
        start = engine.tokenizer.encode(prompt, special=True)
        generated = engine.generate_ids(start, max_tokens=64)
        assert generated, prompt
        logits = transformers_logits(transformers_model, start + generated)
        choices = logits[len(start) - 1 : -1]  # [n_generated, vocab]
        behind = choices.max(axis=-1) - choices[np.arange(len(generated)), generated]
        assert behind.max() <= TIE, f"{prompt!r}: token {int(behind.argmax())}"
        stops = int(logits[-1].argmax()) in engine.tokenizer.stop_ids
        assert stops or len(generated) == 64, prompt


def test_llama_cpp_scores_the_same_weights_alike(
    real_model: Checkpoint, real_model_path: Path, windows: list[list[int]], tmp_path: Path
) -> None:
    write_gguf(real_model, real_model_path, tmp_path / "model.gguf", "f32")
    peer = open_in_llama_cpp(tmp_path / "model.gguf", context=len(windows[0]))
    chosen = windows[::3]
    theirs = [target_log_probs(llama_cpp_logits(peer, window), window) for window in chosen]
    ours = Engine(real_model, weights="f32").score(chosen)
    assert perplexity(ours) == pytest.approx(perplexity(theirs), rel=BF16_TOLERANCE)


def test_saved_folder_opens_in_transformers(
    real_model: Checkpoint, windows: list[list[int]], tmp_path: Path
) -> None:
    save(real_model, tmp_path / "saved", dtype="bf16")
    peer = open_in_transformers(tmp_path / "saved")
    window = windows[0]
    theirs = target_log_probs(transformers_logits(peer, window), window)
    (ours,) = Engine(load(tmp_path / "saved"), weights="bf16").score([window])
    assert perplexity([ours]) == pytest.approx(perplexity([theirs]), rel=F32_TOLERANCE)


def test_removed_layers(
    real_model: Checkpoint,
    real_model_path: Path,
    windows: list[list[int]],
    transformers_model: Any,
    tmp_path: Path,
) -> None:
    """Layers masked, removed and saved, deleted in transformers, absent from a GGUF file."""
    chosen = windows[::3]
    masked = Engine(real_model, weights="f32").score(chosen, mask=Mask.skip_layers(REMOVED_LAYERS))
    slim = prune(
        real_model, explicit(real_model, drop_layers=REMOVED_LAYERS), repair="none", dtype="f32"
    )
    save(slim, tmp_path / "slim")
    removed = Engine(load(tmp_path / "slim"), weights="f32").score(chosen)
    for ours, also_ours in zip(masked, removed, strict=True):
        np.testing.assert_array_equal(ours, also_ours)

    layers = transformers_model.model.layers
    kept = [layer for index, layer in enumerate(layers) if index not in REMOVED_LAYERS]
    transformers_model.model.layers = type(layers)(kept)
    try:
        logits = [transformers_logits(transformers_model, window) for window in chosen]
    finally:
        transformers_model.model.layers = layers
    deleted = [target_log_probs(rows, w) for rows, w in zip(logits, chosen, strict=True)]
    assert perplexity(removed) == pytest.approx(perplexity(deleted), rel=F32_TOLERANCE)

    write_gguf(slim, real_model_path, tmp_path / "slim.gguf", "f32")
    peer = open_in_llama_cpp(tmp_path / "slim.gguf", context=len(chosen[0]))
    theirs = [target_log_probs(llama_cpp_logits(peer, window), window) for window in chosen]
    assert perplexity(removed) == pytest.approx(perplexity(theirs), rel=BF16_TOLERANCE)

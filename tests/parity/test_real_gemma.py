"""Gemma 3 270M, a real model with windows and two rope bases, through other engines."""

from __future__ import annotations

from importlib import resources
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
)
from slimformer.checkpoint import Checkpoint, load, pull, save
from slimformer.engine import Engine
from slimformer.tokenizer import Tokenizer

pytestmark = pytest.mark.model

F32_TOLERANCE = 1e-3  # of perplexity: two float32 engines that add in different orders
QUANTISED_TOLERANCE = 2e-2  # of perplexity: llama.cpp rounds what quantised matrices multiply
LENGTH = 700  # beyond the window of 512
WINDOWS = 2


@pytest.fixture(scope="module")
def path() -> Path:
    return pull("gemma3-270m")


@pytest.fixture(scope="module")
def model(path: Path) -> Checkpoint:
    return load(path)


@pytest.fixture(scope="module")
def windows(model: Checkpoint) -> list[list[int]]:
    """Token windows of two shipped texts, each after the token that begins every text."""
    assert model.tokenizer is not None
    tokenizer = Tokenizer(model.tokenizer)
    data = resources.files("slimformer") / "data"
    texts = [(data / name).read_text(encoding="utf-8") for name in ("prose.txt", "drama.txt")]
    return [tokenizer.encode(text[:6000])[:LENGTH] for text in texts[:WINDOWS]]


@pytest.fixture(scope="module")
def ours(model: Checkpoint, windows: list[list[int]]) -> list[np.ndarray]:
    return Engine(model, weights="f32").score(windows)


def peer_scores(logits: Any, windows: list[list[int]]) -> list[np.ndarray]:
    return [target_log_probs(logits(window), window) for window in windows]


def test_transformers_agrees_on_what_is_saved(
    model: Checkpoint, windows: list[list[int]], ours: list[np.ndarray], tmp_path: Path
) -> None:
    save(model, tmp_path / "gemma")
    peer = open_in_transformers(tmp_path / "gemma")
    theirs = peer_scores(lambda window: transformers_logits(peer, window), windows)
    assert perplexity(ours) == pytest.approx(perplexity(theirs), rel=F32_TOLERANCE)
    np.testing.assert_allclose(np.concatenate(ours), np.concatenate(theirs), rtol=0, atol=2e-3)
    assert load(tmp_path / "gemma").fingerprint == model.fingerprint


def test_llama_cpp_agrees_on_the_file(
    path: Path, windows: list[list[int]], ours: list[np.ndarray]
) -> None:
    peer = open_in_llama_cpp(path, context=LENGTH)
    theirs = peer_scores(lambda window: llama_cpp_logits(peer, window), windows)
    assert perplexity(ours) == pytest.approx(perplexity(theirs), rel=QUANTISED_TOLERANCE)


def test_llama_cpp_cuts_text_into_the_same_tokens(path: Path, model: Checkpoint) -> None:
    assert model.tokenizer is not None
    tokenizer = Tokenizer(model.tokenizer)
    peer = open_in_llama_cpp(path, context=64)
    for text in ("The capital of France is", "  two spaces\n\nlines", "naïve 東京 🙂 1234"):
        assert tokenizer.encode(text) == peer.tokenize(text.encode())

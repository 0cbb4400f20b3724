"""MiniLM, a real sentence encoder, beside transformers: the same vectors."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimformer.checkpoint import Checkpoint, load, pull, save
from slimformer.engine import Engine

pytestmark = pytest.mark.model

TOLERANCE = 1e-5  # of vectors of length 1: six layers of float32 sums
BF16_COSINE = 0.999  # weights rounded to 8 bits of mantissa


@pytest.fixture(scope="module")
def path() -> Path:
    return pull("all-minilm-l6-v2")


@pytest.fixture(scope="module")
def model(path: Path) -> Checkpoint:
    return load(path)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Sentences of a shipped text, and a paragraph of it."""
    prose = (resources.files("slimformer") / "data" / "prose.txt").read_text(encoding="utf-8")
    sentences = [piece.strip() + "." for piece in prose.replace("\n", " ").split(".")]
    return [sentence for sentence in sentences[:40] if len(sentence) > 20] + [prose[:1500]]


def peer_vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """Mean of the tokens' states, padded and masked, at length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    found = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        states = model(**found).last_hidden_state
    mask = found["attention_mask"][..., None].float()
    means = (states * mask).sum(1) / mask.sum(1)
    return np.asarray(torch.nn.functional.normalize(means).numpy())


def test_vectors_are_those_of_transformers(
    path: Path, model: Checkpoint, texts: list[str], tmp_path: Path
) -> None:
    expected = peer_vectors(path, texts)
    found = Engine(model, weights="f32").encode(texts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    save(model, tmp_path / "minilm")
    read = load(tmp_path / "minilm")
    assert read.fingerprint == model.fingerprint
    np.testing.assert_array_equal(Engine(read, weights="f32").encode(texts), found)
    rounded = Engine(model, weights="bf16").encode(texts)
    assert (rounded * expected).sum(axis=1).min() > BF16_COSINE

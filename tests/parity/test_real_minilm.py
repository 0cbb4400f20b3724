"""MiniLM, a real sentence encoder, beside transformers: the same vectors."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimformer.checkpoint import Checkpoint, load, pull, save
from slimformer.engine import Engine
from slimformer.export import export
from slimformer.export.verify import verify
from slimformer.prune import plan, prune

pytestmark = pytest.mark.model

TOLERANCE = 1e-5  # of vectors of length 1: six layers of float32 sums
GELU_TABLE = 1e-4  # of a cosine: llama.cpp takes GELU from a table in float16
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


def test_repair_brings_vectors_back_on_text_it_has_not_seen(
    model: Checkpoint, texts: list[str]
) -> None:
    """A fifth of the parameters gone; calibrated on another text than that of the comparison."""
    drama = (resources.files("slimformer") / "data" / "drama.txt").read_text(encoding="utf-8")
    recipe = plan(model, keep=0.8, criterion="magnitude")
    dense = Engine(model, weights="f32").encode(texts)

    def likeness(slim: Checkpoint) -> float:
        vectors = Engine(slim, weights="f32").encode(texts)
        return float((vectors * dense).sum(axis=1).mean())

    cut = likeness(prune(model, recipe, repair="none"))
    repaired = likeness(prune(model, recipe, calibration=[drama], tokens=8192))
    assert 1 - repaired < 0.8 * (1 - cut)


def test_llama_cpp_gives_the_same_vectors(
    model: Checkpoint, texts: list[str], tmp_path: Path
) -> None:
    import llama_cpp

    done = export(model, tmp_path / "minilm.gguf", to="gguf", dtype="f32")
    verify(model, done).check()
    peer = llama_cpp.Llama(str(done.path), n_ctx=512, embedding=True, verbose=False)
    theirs = np.asarray(peer.embed(texts[:8]))
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    ours = Engine(model, weights="f32").encode(texts[:8])
    assert (ours * theirs).sum(axis=1).min() > 1 - GELU_TABLE
    tokenizer = Engine(model).tokenizer
    assert tokenizer is not None
    for text in texts[:8]:
        cut = peer.tokenize(text.encode(), add_bos=True, special=False)
        assert cut == tokenizer.encode_framed(text, 512)
    again = load(done.path)
    assert again.config == model.config
    np.testing.assert_array_equal(Engine(again, weights="f32").encode(texts[:8]), ours)


def test_an_export_is_verified_by_transformers(model: Checkpoint, tmp_path: Path) -> None:
    done = export(model, tmp_path / "minilm", to="huggingface")
    found = verify(model, done)
    assert found.measure == "cosine"
    assert found.difference < TOLERANCE
    assert found.same_tokens

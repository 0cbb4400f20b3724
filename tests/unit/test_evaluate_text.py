"""Perplexity against the plain numpy model, and what it says of text that cannot be used."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.forward import forward
from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import Checkpoint
from slimformer.engine import Engine, Mask
from slimformer.errors import ConfigError, DataError, StorageError
from slimformer.evaluate import evaluate_text, perplexity, read_text

TEXT = "the light of the river and the stone, in the engine — to layer ünïcode " * 4


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    config = random_config(np.random.default_rng(5), ragged=False, max_positions=64)
    return random_checkpoint(config, 5, tokenizer=True)


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint) -> Engine:
    return Engine(checkpoint, weights="f32", threads=1)


def reference_nats(checkpoint: Checkpoint, ids: list[int]) -> float:
    """Negative log likelihood of every id but the first, summed."""
    logits = forward(checkpoint.config, checkpoint.read_f32, ids)
    log_likelihood = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -float(log_likelihood[np.arange(len(ids) - 1), ids[1:]].sum())


@given(count=st.integers(0, 50), size=st.integers(2, 12))
def test_windows_cut_the_text_without_overlap(count: int, size: int) -> None:
    ids = list(range(count))
    windows = perplexity.split_windows(ids, size, None)
    joined = [token for window in windows for token in window]
    assert joined == ids[: len(joined)]
    assert count - len(joined) <= 1
    assert all(len(window) == size for window in windows[:-1])
    assert all(2 <= len(window) <= size for window in windows)
    assert perplexity.split_windows(ids, size, 2) == windows[:2]


def test_perplexity_is_that_of_the_reference(checkpoint: Checkpoint, engine: Engine) -> None:
    assert engine.tokenizer is not None
    ids = engine.tokenizer.encode(TEXT)
    windows = [ids[start : start + 20] for start in range(0, len(ids), 20)]
    nats = sum(reference_nats(checkpoint, window) for window in windows)
    result = evaluate_text(engine, TEXT, context=20)
    assert result.windows == len(windows)
    assert result.tokens == len(ids) - len(windows)
    # float32 logits near 1 keep a mean log likelihood to six digits.
    assert result.nats_per_token == pytest.approx(nats / result.tokens, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(nats / result.tokens), rel=1e-5)
    bits = nats / result.tokens * len(ids) / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits / len(TEXT.encode()), rel=1e-5)


def test_a_mask_counts(engine: Engine) -> None:
    masked = evaluate_text(engine, TEXT, mask=Mask(exit_after=0, skip_ffn=(0,)))
    assert masked.perplexity != evaluate_text(engine, TEXT).perplexity


def test_passes_do_not_change_the_result(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    together = evaluate_text(engine, TEXT, context=8)
    monkeypatch.setattr(perplexity, "BATCH_TOKENS", 8)
    one_by_one = evaluate_text(engine, TEXT, context=8)
    assert one_by_one.nats_per_token == pytest.approx(together.nats_per_token, rel=1e-6)


def test_windows_end_at_the_limit_of_the_model(engine: Engine) -> None:
    assert evaluate_text(engine, TEXT, context=10_000) == evaluate_text(engine, TEXT, context=64)


def test_max_windows_scores_the_beginning(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate_text(
        engine,
        TEXT,
        context=16,
        max_windows=3,
        progress=lambda what, done, total: seen.append((done, total)),
    )
    assert (result.windows, result.tokens) == (3, 45)
    assert seen[-1] == (3, 3)


@pytest.mark.parametrize("text", ["", "a"])
def test_too_little_text_is_refused(engine: Engine, text: str) -> None:
    with pytest.raises(DataError, match="two tokens"):
        evaluate_text(engine, text)


def test_settings_are_checked(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="context"):
        evaluate_text(engine, TEXT, context=1)
    with pytest.raises(ConfigError, match="max_windows"):
        evaluate_text(engine, TEXT, max_windows=0)


def test_a_model_without_tokenizer_is_refused(checkpoint: Checkpoint) -> None:
    bare = random_checkpoint(checkpoint.config, 5)
    with pytest.raises(ConfigError, match="tokenizer"):
        evaluate_text(Engine(bare, threads=1), TEXT)


def test_an_overflow_is_infinite() -> None:
    assert perplexity.TextResult(1, 1, 1e4, 1.0).perplexity == math.inf


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        read_text(tmp_path / "missing.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_text(tmp_path / "binary")
    (tmp_path / "blank").write_text(" \n")
    with pytest.raises(DataError, match="empty"):
        read_text(tmp_path / "blank")

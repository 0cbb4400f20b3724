"""Which tokens stay goes by what the model expects, too: text alone knows too few."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from reference.models import random_checkpoint, random_config
from reference.vocabularies import KINDS, prose
from slimformer import Engine
from slimformer.checkpoint import Checkpoint, Tensor
from slimformer.progress import silent
from slimformer.prune import cut_to_text
from slimformer.prune.calibrate import make_windows
from slimformer.prune.vocabulary import predictions
from slimformer.prune.vocabulary.choice import count_tokens
from slimformer.tokenizer import Tokenizer

TEXT = [prose()[:3000]]


def model() -> Checkpoint:
    assets = KINDS["byte_level"]()
    size = Tokenizer(assets).vocab_size
    config = random_config(np.random.default_rng(1), vocab_size=size, ragged=False)
    config = dataclasses.replace(config, tied_head=False)
    return dataclasses.replace(random_checkpoint(config, 1), tokenizer=assets)


def expecting(dense: Checkpoint, token: int) -> Checkpoint:
    """The model with a token that half of all places give a high logit."""
    head = dense.read_f32("head.weight").copy()
    head[token] *= 100
    return dataclasses.replace(dense, tensors={**dense.tensors, "head.weight": Tensor.of(head)})


def shares(checkpoint: Checkpoint, seed: int = 3) -> np.ndarray:
    return predictions.predicted_shares(checkpoint, TEXT, seed=seed, threads=1, progress=silent)


def test_they_are_the_mean_of_the_flattened_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "TOKENS", 320)
    monkeypatch.setattr(predictions, "LOGITS", 7 * model().config.vocab_size)
    windows = make_windows(model(), TEXT, tokens=320, seed=3, window=predictions.WINDOW)
    assert windows.shape == (5, predictions.WINDOW)
    engine = Engine(model(), weights="f32", threads=1)
    sessions = [engine.session() for _ in windows]
    logits = engine.forward(sessions, list(windows), logits="all")
    likely = np.exp(logits.astype(np.float64) / predictions.TEMPERATURE)
    expected = (likely / likely.sum(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(shares(model()), expected, rtol=1e-4)
    assert np.abs(shares(model(), seed=4) - expected).max() > 1e-5


def test_what_the_model_expects_stays_though_the_text_has_none_of_it() -> None:
    dense = model()
    counts = count_tokens(dense, TEXT)
    rest = set(range(400, 800)) - set(np.flatnonzero(counts).tolist())
    plain = cut_to_text(dense, TEXT, size=500, threads=1).vocabulary
    assert plain is not None
    gone = sorted(rest - set(plain))
    assert gone
    eager = cut_to_text(expecting(dense, gone[0]), TEXT, size=500, threads=1).vocabulary
    assert eager is not None
    assert gone[0] in eager


def test_an_encoder_predicts_nothing_and_goes_by_the_vocabulary() -> None:
    dense = model()
    config = dataclasses.replace(dense.config, causal=False, tied_head=True)
    encoder = dataclasses.replace(random_checkpoint(config, 1), tokenizer=dense.tokenizer)
    counts = count_tokens(encoder, TEXT)
    kept = cut_to_text(encoder, TEXT, size=500, threads=1).vocabulary
    assert kept is not None
    unseen = [row for row in kept if not counts[row]]
    left = set(range(300, 800)) - set(kept)
    assert np.mean(unseen) < np.mean(sorted(left))

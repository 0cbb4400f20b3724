"""What the loss feels of errors in the stream, against finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from reference.models import random_checkpoint
from slimformer.checkpoint import Checkpoint
from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinkConfig,
    ModelConfig,
    RopeConfig,
)
from slimformer.errors import DataError
from slimformer.train import stream_sensitivity, to_torch


def small_model(layers: int) -> Checkpoint:
    attention = AttentionConfig(2, 1, 4, 4, (0, 0), 0.5, RopeConfig(4))
    layer = LayerConfig(attention, FfnConfig(12))
    config = ModelConfig("llama", 30, 6, 6, 1e-5, False, 64, (layer,) * layers)
    return random_checkpoint(config, 2)


def windows(count: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 30, (count, tokens)).astype(np.int32)


def test_without_layers_it_is_the_gradient_by_what_the_head_reads() -> None:
    import torch

    model = small_model(0)
    text = windows(2, 7)
    total = np.zeros((6, 6))
    head = torch.from_numpy(model.read_f32("head.weight"))
    gains = torch.from_numpy(model.read_f32("final_norm.weight"))
    for window in text:
        stream = torch.from_numpy(model.read_f32("embedding.weight")[window])
        normed = stream / stream.square().mean(-1, keepdim=True).add(1e-5).sqrt()
        normed.requires_grad_()
        logits = (normed * gains) @ head.T
        target = torch.from_numpy(window[1:].astype(np.int64))
        torch.nn.functional.cross_entropy(logits[:-1], target, reduction="sum").backward()
        assert normed.grad is not None
        total += (normed.grad.T @ normed.grad).double().numpy()
    np.testing.assert_allclose(stream_sensitivity(model, text), total / text.size, rtol=1e-4)


def test_every_place_that_reads_adds_to_it() -> None:
    text = windows(3, 16)
    model = small_model(2)
    found = stream_sensitivity(model, text)
    np.testing.assert_allclose(found, found.T, rtol=1e-5)
    assert (np.linalg.eigvalsh(found) > 0).all()
    # Nothing is felt in a channel whose gains are zero wherever it is read.
    silent = {}
    for name in model.tensors:
        if name.endswith("norm.weight"):
            silent[name] = model.read(name) * (np.arange(6) != 4)
    deaf = stream_sensitivity(model.with_tensors(silent), text)
    assert np.abs(deaf[4]).max() == 0
    assert (np.delete(np.diag(deaf), 4) > 0).all()


def test_links_read_too_and_parameters_are_left_alone() -> None:
    layer = LayerConfig(LinkConfig("full"), None)
    config = ModelConfig("llama", 30, 6, 6, 1e-5, True, 64, (layer,))
    model = random_checkpoint(config, 2)
    before = model.fingerprint
    assert stream_sensitivity(model, windows(1, 9)).shape == (6, 6)
    assert model.fingerprint == before
    assert all(parameter.grad is None for parameter in to_torch(model).parameters())


def test_gradients_that_are_not_finite_are_told() -> None:
    model = small_model(1)
    huge = model.with_tensors({"head.weight": np.full((30, 6), 1e38, np.float32)})
    with pytest.raises(DataError, match="not finite"):
        stream_sensitivity(huge, windows(1, 9))

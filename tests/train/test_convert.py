from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from reference.engines import TOLERANCE, difference, random_case, seeds
from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import cast
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.errors import ConfigError, DataError
from slimformer.train import from_torch, to_torch


def torch_logits(model: Checkpoint, tokens: list[int]) -> np.ndarray:
    """Logits of every position, [n_tokens, vocab_size]."""
    import torch

    with torch.no_grad():
        return np.asarray(to_torch(model)(torch.tensor([tokens]))[0])


@given(seeds)
def test_the_module_computes_what_reference_and_engine_compute(seed: int) -> None:
    case = random_case(seed)
    found = torch_logits(case.checkpoint, case.tokens.tolist())
    assert difference(found, case.reference()) < TOLERANCE
    engine = case.engine(tier="scalar")
    computed = engine.forward([engine.session()], [case.tokens], logits="all")
    assert difference(found, computed) < TOLERANCE


@given(seeds)
def test_there_and_back_is_the_same_model(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = random_config(rng, experts=seed % 2 == 0)
    model = random_checkpoint(config, seed, dtype=("f32", "bf16", "f16")[seed % 3])
    assert from_torch(to_torch(model), model).fingerprint == model.fingerprint


def test_sequences_do_not_see_each_other() -> None:
    import torch

    case = random_case(5, max_tokens=40)
    tokens = torch.tensor(np.random.default_rng(1).integers(0, 300, (3, 40)))
    module = to_torch(case.checkpoint)
    together = module(tokens)
    for row, alone in zip(together, tokens, strict=True):
        torch.testing.assert_close(row, module(alone[None])[0])


def test_weights_come_back_rounded_and_a_model_is_not_changed() -> None:
    import torch

    model = cast(random_checkpoint(random_config(np.random.default_rng(3)), 3), "bf16")
    before = model.fingerprint
    module = to_torch(model)
    with torch.no_grad():
        module.final_norm.weight += 1 / 3
    changed = from_torch(module, model)
    assert model.fingerprint == before
    assert changed.tensors["final_norm.weight"].dtype == "bf16"
    expected = (model.read_f32("final_norm.weight") + np.float32(1 / 3)).astype(
        changed.read("final_norm.weight").dtype
    )
    np.testing.assert_array_equal(changed.read("final_norm.weight"), expected)


def test_other_modules_and_broken_weights_are_refused() -> None:
    import torch

    small, large = (
        random_checkpoint(random_config(np.random.default_rng(3), vocab_size=size), 3, dtype="f16")
        for size in (40, 50)
    )
    with pytest.raises(ConfigError, match=r"embedding\.weight"):
        from_torch(to_torch(large), small)
    with pytest.raises(ConfigError, match="none"):
        from_torch(torch.nn.Linear(2, 2), small)
    module = to_torch(small)
    for wrong in (float("nan"), 1e6):
        with torch.no_grad():
            module.final_norm.weight[0] = wrong
        with pytest.raises(DataError, match=r"final_norm\.weight.*f16"):
            from_torch(module, small)

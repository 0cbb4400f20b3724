"""Models with experts: what is written, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prune.cases import routed_model
from reference.models import random_checkpoint
from slimformer.checkpoint import load
from slimformer.checkpoint.gguf_header import open_gguf
from slimformer.errors import UnsupportedModelError
from slimformer.export import export
from slimformer.prune import explicit, prune


def test_routers_and_stacked_experts_of_a_quantised_file(tmp_path: Path) -> None:
    model = random_checkpoint(routed_model(layers=2, neurons=64).config, 1, tokenizer=True)
    path = tmp_path / "model.gguf"
    export(model, path, to="gguf", dtype="q8_0")
    kinds = {name: tensor.quantisation.name for name, tensor in open_gguf(path).tensors.items()}
    assert kinds["blk.1.ffn_gate_inp.weight"] == "F32"
    assert kinds["blk.1.ffn_down_exps.weight"] == "Q8_0"
    read = load(path)
    assert read.config == model.config
    for name in ("router.weight", "experts.0.up.weight", "experts.5.down.weight"):
        values = model.read_f32(f"layers.1.ffn.{name}")
        found = read.read_f32(f"layers.1.ffn.{name}")
        np.testing.assert_allclose(found, values, rtol=0, atol=0.01 * float(np.abs(values).max()))


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("to", ["gguf", "huggingface"])
def test_layers_with_other_experts_are_refused(to: str, pad: bool, tmp_path: Path) -> None:
    model = routed_model(layers=2)
    slim = prune(model, explicit(model, experts={1: (0, 3, 4)}), repair="none")
    with pytest.raises(UnsupportedModelError, match="experts"):
        export(slim, tmp_path / "out", to=to, pad=pad)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()

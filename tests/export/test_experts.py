"""Models with experts: what is written, and what is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from prune.cases import routed_model
from reference.engines import TOLERANCE, difference
from reference.models import random_checkpoint
from slimformer.checkpoint import load
from slimformer.checkpoint.gguf_header import open_gguf
from slimformer.config import LinkConfig
from slimformer.engine import Engine
from slimformer.errors import UnsupportedModelError
from slimformer.export import export
from slimformer.export.rewrite import uniform_layers
from slimformer.prune import explicit, prune
from slimformer.prune.recipe import NewLink, Recipe
from slimformer.prune.surgery import apply


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


@pytest.mark.parametrize(
    ("to", "pad", "message"),
    [
        ("gguf", False, "layer 0 ffn: experts have no equivalent"),
        ("gguf", True, "layers with 3 and 6 experts have no equivalent"),
        ("huggingface", True, "layers with 3 and 6 experts have no equivalent"),
    ],
)
def test_layers_with_other_numbers_of_experts_are_refused(
    to: Literal["gguf", "huggingface"], pad: bool, message: str, tmp_path: Path
) -> None:
    model = routed_model(layers=2)
    slim = prune(model, explicit(model, experts={1: (0, 3, 4)}), repair="none")
    with pytest.raises(UnsupportedModelError, match=message):
        export(slim, tmp_path / "out", to=to, pad=pad)
    assert not (tmp_path / "out").exists()


def test_experts_of_all_widths_are_filled_up() -> None:
    model = routed_model(layers=3)
    recipe = explicit(
        model,
        heads={0: (0, 1, 3)},
        drop_attention=(2,),
        drop_ffn=(1,),
        expert_neurons={0: {1: (0, 40), 5: (3,)}, 2: {0: range(30)}},
    )
    slim = prune(model, recipe, repair="none")
    filled, changes = uniform_layers(slim)
    assert len(set(filled.config.layers)) == 1
    added = sum(change.parameters for change in changes)
    assert filled.config.parameters() == slim.config.parameters() + added
    before, after = (Engine(one, weights="f32", threads=1) for one in (slim, filled))
    tokens = list(range(100))
    expected = before.forward([before.session()], [tokens], logits="all")
    found = after.forward([after.session()], [tokens], logits="all")
    assert difference(found, expected) < TOLERANCE


def test_links_beside_experts_are_not_filled_up(tmp_path: Path) -> None:
    model = routed_model(layers=2)
    whole = Recipe.identity(model)
    linked = dataclasses.replace(whole.layers[1], attention=NewLink(LinkConfig("diagonal")))
    slim = apply(model, dataclasses.replace(whole, layers=(whole.layers[0], linked)))
    with pytest.raises(UnsupportedModelError, match="links or neurons beside experts"):
        export(slim, tmp_path / "out", to="huggingface", pad=True)
    export(slim, tmp_path / "out", to="huggingface")
    assert load(tmp_path / "out").config == slim.config

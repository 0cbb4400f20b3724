"""What packing a model refuses, each with the tensor's name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from reference.engines import random_case
from reference.models import random_checkpoint
from slimformer import _core
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig
from slimformer.engine import Engine, build_info, measure_roofline
from slimformer.errors import ConfigError, DataError, FormatError

LARGEST_BF16 = np.float32((2 - 2**-7) * 2.0**127)

CONFIG = ModelConfig(
    "llama", 10, 6, 6, 1e-5, True, 20,
    (LayerConfig(AttentionConfig(2, 1, 4, 4, (0, 0), 0.5, None), FfnConfig(5)),),
)  # fmt: skip


@pytest.mark.parametrize("name", ["layers.0.ffn.down.weight", "final_norm.weight"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(name: str, dtype: str, bad: float) -> None:
    checkpoint = random_checkpoint(CONFIG, 1, dtype=dtype)
    values = checkpoint.read(name).copy()
    values.reshape(-1)[-1] = bad
    with pytest.raises(FormatError, match=f"{name}.*not finite"):
        Engine(checkpoint.with_tensors({name: values}))


def test_values_too_large_for_bf16() -> None:
    checkpoint = random_checkpoint(CONFIG, 1)
    name = "layers.0.attention.q.weight"
    values = checkpoint.read(name).copy()
    values[0, 0] = np.finfo(np.float32).max
    large = checkpoint.with_tensors({name: values})
    Engine(large, weights="f32")
    with pytest.raises(FormatError, match="bfloat16"):
        Engine(large, weights="bf16")
    values[0, 0] = LARGEST_BF16
    Engine(checkpoint.with_tensors({name: values}), weights="bf16")


def packed() -> _core.PackedModel:
    return _core.PackedModel(CONFIG)


def tensor(name: str) -> np.ndarray:
    return np.ones(CONFIG.tensor_shapes()[name], dtype=np.float32)


def unaligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros at an odd address, as in a file whose header has an odd length."""
    count = int(np.prod(shape))
    return np.frombuffer(bytes(4 * count + 1), dtype=np.float32, count=count, offset=1).reshape(
        shape
    )


def test_the_engine_takes_tensors_at_odd_addresses() -> None:
    name = "layers.0.ffn.norm.weight"
    model = random_checkpoint(CONFIG, 1).with_tensors({name: unaligned((6,))})
    assert not model.read(name).flags.aligned
    Engine(model)


def test_tensors_one_by_one() -> None:
    model = packed()
    with pytest.raises(ConfigError, match="not been finished"):
        _ = model.weight_bytes
    with pytest.raises(FormatError, match=r"head\.weight: the model has no"):
        model.load_tensor("head.weight", tensor("embedding.weight"))
    with pytest.raises(FormatError, match=r"expected shape \[10, 6\], found \[6, 10\]"):
        model.load_tensor("embedding.weight", np.ones((6, 10), dtype=np.float32))
    with pytest.raises(FormatError, match="float64"):
        model.load_tensor("embedding.weight", np.ones((10, 6)))
    with pytest.raises(DataError, match="contiguous"):
        model.load_tensor("embedding.weight", np.ones((6, 10), dtype=np.float32).T)
    with pytest.raises(DataError, match="aligned"):
        model.load_tensor("embedding.weight", unaligned((10, 6)))
    model.load_tensor("embedding.weight", tensor("embedding.weight"))
    with pytest.raises(FormatError, match="loaded twice"):
        model.load_tensor("embedding.weight", tensor("embedding.weight"))
    with pytest.raises(FormatError, match=r"final_norm\.weight: missing"):
        model.finish()
    for name in CONFIG.tensor_shapes():
        if name != "embedding.weight":
            model.load_tensor(name, tensor(name))
    model.finish()
    assert model.weight_bytes > 0
    with pytest.raises(ConfigError, match="finished"):
        model.finish()
    with pytest.raises(ConfigError, match="finished"):
        model.load_tensor("final_norm.weight", tensor("final_norm.weight"))


@dataclasses.dataclass(frozen=True)
class Unchecked:
    """A configuration that no dataclass has checked."""

    base: Any
    changes: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.changes.get(name) if name in self.changes else getattr(self.base, name)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 0},
        {"vocab_size": 1 << 30},
        {"vocab_size": 1 << 80},
        {"n_channels": -1},
        {"norm_eps": float("nan")},
        {"max_positions": 0},
        {"layers": (LayerConfig(None, None),) * 5000},
        {"vocab_size": "many"},
    ],
    ids=str,
)
def test_the_core_checks_the_configuration_again(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        _core.PackedModel(Unchecked(CONFIG, changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [{"n_heads": 3}, {"q_to_kv": (0, 1)}, {"q_to_kv": (0, -1)}, {"head_dim": 0}, {"value_dim": 0}],
    ids=str,
)
def test_the_core_checks_attention_again(changes: dict[str, Any]) -> None:
    layer = CONFIG.layers[-1]
    attention = Unchecked(layer.attention, changes)
    bad = Unchecked(CONFIG, {"layers": (Unchecked(layer, {"attention": attention}),)})
    with pytest.raises(ConfigError, match="layer 0"):
        _core.PackedModel(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"weights": "int3"}, {"threads": -1}, {"threads": 100000}, {"tier": "sse9"}, {"kv": "f16"}],
    ids=str,
)
def test_settings_that_are_not_offered(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Engine(random_checkpoint(CONFIG, 1), **options)


def test_a_tied_head_is_packed_once() -> None:
    case = random_case(3, max_layers=1, ragged=False)
    config = dataclasses.replace(case.checkpoint.config, tied_head=True)
    untied = dataclasses.replace(config, tied_head=False)
    sizes = [Engine(random_checkpoint(c, 1)).weight_bytes for c in (config, untied)]
    assert sizes[1] - sizes[0] >= config.vocab_size * config.n_channels * 2


def test_what_this_build_is() -> None:
    info = build_info()
    assert info["tier"] in info["tiers"]
    assert "scalar" in info["tiers"]
    assert info["weight_types"] == ["f32", "bf16", "int8", "int4"]


def test_the_roofline_is_measured() -> None:
    roofline = measure_roofline(threads=1, seconds=0.1)
    assert roofline["gflops"] > 0
    assert roofline["gbytes_per_s"] > 0
    with pytest.raises(ConfigError):
        measure_roofline(threads=1, seconds=-1.0)

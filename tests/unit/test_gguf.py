from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from reference.gguf_files import encode, finish, interleave, write_llama
from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import Checkpoint, load
from slimformer.checkpoint.dequantise import QUANTISED, dequantise
from slimformer.checkpoint.families.rope_scaling import recognise_llama3
from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinearRopeScaling,
    Llama3RopeScaling,
    LongRopeScaling,
    ModelConfig,
    RopeConfig,
    RopeScaling,
    YarnRopeScaling,
)
from slimformer.errors import FormatError, UnsupportedModelError

PLAIN = ("F32", "F16", "BF16")


def uniform(
    *,
    head_dim: int = 8,
    scaling: RopeScaling | None = None,
    tied: bool = False,
    bias: bool = False,
    channels: int = 256,
) -> Checkpoint:
    """A model whose matrices have rows of 256, which every block size divides."""
    attention = AttentionConfig(
        n_heads=4,
        n_kv_heads=2,
        head_dim=head_dim,
        value_dim=64,
        q_to_kv=(0, 0, 1, 1),
        scale=head_dim**-0.5,
        rope=RopeConfig(head_dim, 10000.0, scaling),
        qkv_bias=bias,
        output_bias=bias,
    )
    config = ModelConfig(
        family="llama",
        vocab_size=11,
        n_channels=channels,
        norm_divisor=channels,
        norm_eps=1e-5,
        tied_head=tied,
        max_positions=64,
        layers=(LayerConfig(attention, FfnConfig(256, bias)),) * 2,
    )
    return random_checkpoint(config, 5)


def same_values(read: Checkpoint, expected: Checkpoint) -> bool:
    return all(
        np.array_equal(read.read_f32(name), expected.read_f32(name)) for name in expected.tensors
    )


@pytest.mark.parametrize("kind", sorted(kind.name for kind in QUANTISED))
@pytest.mark.parametrize("rows", [1, 3, 700])
def test_dequantise_gives_the_bits_of_the_package(kind: str, rows: int) -> None:
    values = np.random.default_rng(1).standard_normal((rows, 256)).astype(np.float32)
    stored = encode(values, kind)
    quantisation = GGMLQuantizationType[kind]
    found = dequantise(stored.reshape(-1), values.shape, quantisation)
    np.testing.assert_array_equal(found, dequantize(stored, quantisation))


@pytest.mark.parametrize("kind", [*PLAIN, *sorted(kind.name for kind in QUANTISED)])
def test_every_element_type_is_read(tmp_path: Path, kind: str) -> None:
    source = uniform()
    path = tmp_path / "model.gguf"
    write_llama(path, source, kind=kind)
    model = load(path)
    assert model.config == source.config
    assert model.quantised == (kind not in PLAIN)
    name = "layers.1.attention.o.weight"
    index = list(source.tensors).index(name)
    stored = encode(source.read_f32(name), kind, index)
    expected = dequantize(stored, GGMLQuantizationType[kind])
    np.testing.assert_array_equal(model.read_f32(name), expected.reshape(model.tensors[name].shape))
    assert model.tensors[name].dtype == {"F16": "f16", "BF16": "bf16"}.get(kind, "f32")
    assert all(t.read().shape == t.shape for t in model.tensors.values())


@given(seed=st.integers(0, 10_000))
def test_uniform_models_of_any_shape_come_back(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    config = random_config(rng, ragged=False, vocab_size=20)
    layers = tuple(
        dataclasses.replace(
            layer,
            attention=dataclasses.replace(
                layer.attention, rope=RopeConfig(layer.attention.rope.rotary_dim)
            ),
        )
        for layer in config.layers
        if isinstance(layer.attention, AttentionConfig) and layer.attention.rope is not None
    )
    source = random_checkpoint(dataclasses.replace(config, layers=layers), seed)
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_llama(path, source)
    model = load(path)
    assert model.config == source.config
    assert same_values(model, source)


def test_layers_may_differ_in_heads_and_neurons(tmp_path: Path) -> None:
    source = uniform()
    first, second = source.config.layers
    assert isinstance(second.attention, AttentionConfig)
    narrow = dataclasses.replace(second.attention, n_heads=3, n_kv_heads=3, q_to_kv=(0, 1, 2))
    config = dataclasses.replace(source.config, layers=(first, LayerConfig(narrow, FfnConfig(17))))
    source = random_checkpoint(config, 1)
    path = tmp_path / "model.gguf"
    write_llama(path, source)
    assert load(path).config == config
    assert same_values(load(path), source)
    write_llama(path, source, omit=["attention.key_length"])
    with pytest.raises(FormatError, match="key_length"):
        load(path)


@given(
    n_heads=st.integers(1, 4),
    half=st.integers(1, 6),
    rest=st.integers(0, 5),
    position=st.integers(0, 50),
)
def test_rows_are_put_back_so_that_rotations_agree(
    n_heads: int, half: int, rest: int, position: int
) -> None:
    """llama.cpp rotates neighbours in the file's rows; here it is (j, j + half)."""
    rotary_dim = 2 * half
    rng = np.random.default_rng(n_heads + 10 * half)
    canonical = rng.standard_normal((n_heads * (rotary_dim + rest), 3))
    stored = interleave(canonical, n_heads, rotary_dim)
    angles = position * RopeConfig(rotary_dim).inverse_frequencies().astype(np.float64)
    turn = np.exp(1j * angles)[:, None]
    for here, there in zip(
        canonical.reshape(n_heads, -1, 3), stored.reshape(n_heads, -1, 3), strict=True
    ):
        ours = (here[:half] + 1j * here[half:rotary_dim]) * turn
        theirs = (there[0:rotary_dim:2] + 1j * there[1:rotary_dim:2]) * turn
        np.testing.assert_allclose(ours, theirs)
        np.testing.assert_array_equal(here[rotary_dim:], there[rotary_dim:])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_tied_heads_and_biases_follow_from_the_tensors(
    tmp_path: Path, tied: bool, bias: bool
) -> None:
    source = uniform(tied=tied, bias=bias)
    write_llama(tmp_path / "model.gguf", source)
    model = load(tmp_path / "model.gguf")
    assert model.config == source.config
    assert same_values(model, source)


@pytest.mark.parametrize(
    "settings",
    [
        {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
        {"rope.scaling.factor": 2.0},
        {"rope.scale_linear": 2.0},
    ],
)
def test_linear_rope_scaling_is_read(tmp_path: Path, settings: dict[str, object]) -> None:
    source = uniform(scaling=LinearRopeScaling(2.0))
    write_llama(tmp_path / "model.gguf", source, settings=settings)
    assert load(tmp_path / "model.gguf").config == source.config


@pytest.mark.parametrize(
    ("dim", "theta", "factor", "context"),
    [(64, 500000.0, 32.0, 8192), (128, 500000.0, 8.0, 8192), (32, 10000.0, 4.0, 513)],
)
def test_llama3_scaling_is_recognised_by_its_factors(
    dim: int, theta: float, factor: float, context: int
) -> None:
    rope = RopeConfig(dim, theta, Llama3RopeScaling(factor, 1.0, 4.0, context))
    plain = RopeConfig(dim, theta).inverse_frequencies()
    assert recognise_llama3(dim, theta, plain / rope.inverse_frequencies()) == rope


def test_llama3_scaling_is_read_from_a_file(tmp_path: Path) -> None:
    scaling = Llama3RopeScaling(8.0, 1.0, 4.0, 64)
    source = uniform(head_dim=32, scaling=scaling)
    plain = RopeConfig(32).inverse_frequencies()
    factors = plain / RopeConfig(32, 10000.0, scaling).inverse_frequencies()
    path = tmp_path / "model.gguf"
    write_llama(path, source, tensors={"rope_freqs.weight": factors})
    assert load(path).config == source.config
    write_llama(path, source, tensors={"rope_freqs.weight": np.linspace(1, 3, 16, dtype="f4")})
    with pytest.raises(UnsupportedModelError, match="rope_freqs"):
        load(path)
    write_llama(path, source, tensors={"rope_freqs.weight": np.ones(3, np.float32)})
    with pytest.raises(FormatError, match="rope_freqs"):
        load(path)
    write_llama(path, source, tensors={"rope_freqs.weight": np.full(16, np.nan, np.float32)})
    with pytest.raises(UnsupportedModelError, match="rope_freqs"):
        load(path)


YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({}, YarnRopeScaling(4.0, 64, float(np.float32(0.1 * np.log(4) + 1)))),
        (
            {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0},
            YarnRopeScaling(4.0, 64, float(np.float32(0.1 * np.log(4) + 1)), 8.0, 2.0),
        ),
    ],
)
def test_yarn_is_read(
    tmp_path: Path, settings: dict[str, object], scaling: YarnRopeScaling
) -> None:
    source = uniform(scaling=scaling)
    write_llama(tmp_path / "model.gguf", source, settings={**YARN, **settings})
    assert load(tmp_path / "model.gguf").config == source.config


def test_longrope_is_read_from_a_file(tmp_path: Path) -> None:
    short, long = np.linspace(1, 2, 16, dtype="f4"), np.linspace(2, 9, 16, dtype="f4")
    scaling = LongRopeScaling(tuple(short.tolist()), tuple(long.tolist()), 40, 1.25)
    source = uniform(head_dim=32, scaling=scaling)
    settings = {
        "rope.scaling.original_context_length": 40,
        "rope.scaling.attn_factor": 1.25,
    }
    factors = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    path = tmp_path / "model.gguf"
    write_llama(path, source, settings=settings, tensors=factors)
    assert load(path).config == source.config
    write_llama(path, source, settings=settings, tensors={"rope_factors_long.weight": long})
    with pytest.raises(FormatError, match="rope_factors_short"):
        load(path)
    write_llama(path, source, settings=settings)
    with pytest.raises(FormatError, match=r"attn_factor: expected 1, found 1\.25"):
        load(path)
    factors["rope_factors_long.weight"] = -long
    write_llama(path, source, settings=settings, tensors=factors)
    with pytest.raises(FormatError, match="long_factors: expected a finite number above 0"):
        load(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expert_shared_count": 1}, "expert_shared_count: 1 does not run here"),
        ({"attention.sliding_window": 128}, "sliding_window"),
        ({"rope.scaling.type": "mrope"}, "mrope"),
        ({"rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor"),
        ({"something.new": 1}, "something.new"),
        ({"logit_scale": 2.0}, "logit_scale"),
    ],
)
def test_features_that_do_not_run_are_refused_by_name(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    write_llama(tmp_path / "model.gguf", uniform(), settings=settings)
    with pytest.raises(UnsupportedModelError, match=message):
        load(tmp_path / "model.gguf")


def test_settings_that_leave_the_model_alone_are_accepted(tmp_path: Path) -> None:
    neutral = {"expert_count": 0, "attention.causal": True, "logit_scale": 1.0, "vocab_size": 11}
    write_llama(tmp_path / "model.gguf", uniform(), settings=neutral)
    load(tmp_path / "model.gguf")


def test_other_families_are_refused_by_name(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "falcon")
    finish(writer)
    with pytest.raises(
        UnsupportedModelError, match=r"'falcon' does not .* known: bert, deci, gemma, .*llama"
    ):
        load(tmp_path / "model.gguf")


def test_missing_unexpected_and_unreadable_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    source = uniform()
    write_llama(path, source, omit=["blk.0.ffn_up.weight"])
    with pytest.raises(FormatError, match=r"blk.0.ffn_up.weight: expected, found none"):
        load(path)
    write_llama(path, source, tensors={"blk.0.extra.weight": np.zeros(3, np.float32)})
    with pytest.raises(FormatError, match=r"unexpected tensors \['blk.0.extra.weight'\]"):
        load(path)
    write_llama(path, source, tensors={"output_norm.weight": np.zeros(256, np.float64)})
    with pytest.raises(UnsupportedModelError, match=r"output_norm.weight: element type F64"):
        load(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_length": 128}, r"token_embd.weight: expected shape \(11, 128\)"),
        ({"vocab_size": 12}, "expected 12 rows"),
        ({"block_count": 3}, "head_count: expected an integer or 3 of them"),
        ({"block_count": 0}, "block_count"),
        ({"block_count": 1 << 31}, "block_count"),
        ({"attention.head_count": 3, "attention.head_count_kv": 2}, "groups"),
        ({"attention.head_count": 1 << 31}, "head_count"),
        ({"attention.head_count_kv": 0}, "head_count_kv"),
        ({"rope.dimension_count": 7}, "rotary_dim"),
        ({"rope.dimension_count": 10}, "rotary_dim"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "epsilon"),
        ({"attention.layer_norm_rms_epsilon": 0.0}, "norm_eps"),
        ({"context_length": "many"}, "context_length: expected an integer"),
    ],
)
def test_settings_that_contradict_the_tensors_are_format_errors(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    write_llama(tmp_path / "model.gguf", uniform(), settings=settings)
    with pytest.raises(FormatError, match=message):
        load(tmp_path / "model.gguf")

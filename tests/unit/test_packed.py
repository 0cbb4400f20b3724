"""Packed models: written as the kernels read them, mapped, and never misread."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import slimformer as sf
from reference.models import random_checkpoint, random_config
from slimformer import _kernels as kernels
from slimformer.checkpoint import Checkpoint, load
from slimformer.checkpoint.packed import FILE
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.engine import Engine, Sparse, Weights
from slimformer.errors import (
    ConfigError,
    FormatError,
    StorageError,
    UnsupportedModelError,
)
from slimformer.prune.sparsify import sparsify

PREFIX = struct.Struct("<8sII32s")
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def half_zero(*, tokenizer: bool = False) -> Checkpoint:
    attention = AttentionConfig(4, 2, 16, 16, (0, 0, 1, 1), 0.25, RopeConfig(16))
    layers = (LayerConfig(attention, FfnConfig(150)), LayerConfig(None, FfnConfig(33)))
    config = ModelConfig("llama", 300, 96, 96, 1e-5, True, 100, layers)
    return sparsify(random_checkpoint(config, 3, tokenizer=tokenizer), 0.6)


def logits(model: Checkpoint | Path, **options: Any) -> np.ndarray:
    return Engine(model, **options).session().extend(TOKENS)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    sf.pack(half_zero(tokenizer=True), tmp_path / "packed", weights="int8", sparse="smaller")
    return tmp_path / "packed"


@pytest.mark.parametrize("tier", kernels.tiers())
@pytest.mark.parametrize("weights", get_args(Weights))
@pytest.mark.parametrize("sparse", ["never", "smaller"])
def test_gives_the_same_bits(tmp_path: Path, tier: str, weights: Weights, sparse: Sparse) -> None:
    checkpoint = half_zero()
    sf.pack(checkpoint, tmp_path / "p", weights=weights, sparse=sparse, tier=tier)
    engine = Engine(tmp_path / "p", tier=tier)
    before = Engine(checkpoint, weights=weights, sparse=sparse, tier=tier)
    assert (engine.weights, engine.kv, engine.weight_bytes) == (
        *(weights, before.kv),
        before.weight_bytes,
    )
    np.testing.assert_array_equal(engine.session().extend(TOKENS), before.session().extend(TOKENS))


def test_any_shape(tmp_path: Path) -> None:
    for seed in range(24):
        config = random_config(np.random.default_rng(seed), experts=seed % 3 == 0)
        checkpoint = random_checkpoint(config, seed)
        sf.pack(checkpoint, tmp_path / "p")
        np.testing.assert_array_equal(logits(tmp_path / "p"), logits(checkpoint))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, packed: Path) -> None:
    sf.pack(half_zero(tokenizer=True), tmp_path / "again", weights="int8", sparse="smaller")
    files = sorted(path.name for path in packed.iterdir())
    assert FILE in files
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (packed / name).read_bytes()


def test_the_tokenizer_and_the_shape_come_along(packed: Path) -> None:
    checkpoint = load(packed)
    original = half_zero(tokenizer=True)
    assert checkpoint.config == original.config
    assert checkpoint.tokenizer == original.tokenizer


def test_packed_weights_cannot_be_read_back(tmp_path: Path, packed: Path) -> None:
    checkpoint = load(packed)
    for use in (
        lambda: checkpoint.read("embedding.weight"),
        lambda: checkpoint.save(tmp_path / "out"),
        lambda: sf.plan(checkpoint, keep=0.8),
        lambda: sparsify(checkpoint, 0.5).read("layers.0.ffn.up.weight"),
    ):
        with pytest.raises(UnsupportedModelError, match="packed weights can only be run"):
            use()
    assert not (tmp_path / "out").exists()


def test_another_type_is_refused(packed: Path) -> None:
    assert Engine(packed, weights="int8").weights == "int8"
    with pytest.raises(ConfigError, match=r"expected int8, which .*weights.packed holds"):
        Engine(packed, weights="bf16")


@pytest.mark.skipif(len(kernels.tiers()) < 2, reason="needs two tiers")
def test_another_layout_is_refused_with_a_way_out(tmp_path: Path) -> None:
    sf.pack(half_zero(), tmp_path / "p", weights="int8", tier="scalar")
    with pytest.raises(UnsupportedModelError, match=r"kernels of 'scalar'.*SLIMFORMER_ISA=scalar"):
        Engine(tmp_path / "p", tier=kernels.tiers()[-1])
    assert Engine(tmp_path / "p", tier="scalar").tier == "scalar"


def test_tiers_that_share_a_layout_share_files(tmp_path: Path) -> None:
    """float32 and bfloat16 panels are the parent's where a tier does not replace them."""
    if "avx512_vnni" not in kernels.tiers():
        pytest.skip("needs avx512_vnni")
    sf.pack(half_zero(), tmp_path / "p", tier="avx512")
    np.testing.assert_array_equal(
        logits(tmp_path / "p", tier="avx512_vnni"), logits(tmp_path / "p", tier="avx512")
    )


def test_what_is_not_packed_is_not_replaced(tmp_path: Path, packed: Path) -> None:
    model = tmp_path / "model"
    half_zero().save(model)
    before = sorted(path.name for path in model.iterdir())
    with pytest.raises(StorageError, match="not a folder that Slimformer wrote"):
        sf.pack(model, model)
    assert sorted(path.name for path in model.iterdir()) == before
    with pytest.raises(StorageError, match="not a folder that Slimformer wrote"):
        half_zero().save(packed)
    sf.pack(half_zero(), packed, weights="bf16")
    assert Engine(packed).weights == "bf16"


def test_both_kinds_of_weights_are_one_too_many(packed: Path) -> None:
    (packed / "model.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match="found 2"):
        load(packed)


def test_a_cut_file_is_refused(packed: Path) -> None:
    file = packed / FILE
    whole = file.read_bytes()
    for size in (0, 5, PREFIX.size, PREFIX.size + 100, 4096, len(whole) // 2, len(whole) - 64):
        file.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"not a packed model|truncated"):
            Engine(packed)


def test_a_damaged_header_is_refused(packed: Path) -> None:
    file = packed / FILE
    whole = bytearray(file.read_bytes())
    for position, error in ((0, FormatError), (8, UnsupportedModelError), (12, FormatError)):
        damaged = whole.copy()
        damaged[position] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(error):
            load(packed)
    whole[PREFIX.size + 30] ^= 1
    file.write_bytes(whole)
    with pytest.raises(FormatError, match="checksum differs"):
        load(packed)


def test_an_enormous_header_is_not_read(packed: Path) -> None:
    file = packed / FILE
    magic, version, _, digest = PREFIX.unpack(file.read_bytes()[: PREFIX.size])
    file.write_bytes(PREFIX.pack(magic, version, 2**32 - 1, digest))
    with pytest.raises(FormatError, match="bytes at most"):
        load(packed)


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header and sign it anew, as somebody with bad intentions would."""
    whole = file.read_bytes()
    magic, version, length, _ = PREFIX.unpack(whole[: PREFIX.size])
    header = json.loads(whole[PREFIX.size : PREFIX.size + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (length - len(text))  # tensors stay where they are
    digest = hashlib.sha256(text).digest()
    rest = whole[PREFIX.size + length :]
    file.write_bytes(PREFIX.pack(magic, version, len(text), digest) + text + rest)


HOSTILE: list[Callable[[dict[str, Any]], object]] = [
    lambda h: h["tensors"].pop("embedding.weight"),
    lambda h: h["tensors"].update(extra=h["tensors"]["embedding.weight"]),
    lambda h: h.update(tensors=[]),
    lambda h: h.update(weights="int9"),
    lambda h: h.update(tier=7),
    *(
        lambda h, key=key, value=value: h["tensors"]["layers.0.ffn.up.weight"].update({key: value})
        for key, value in [
            ("offset", -64),
            ("offset", 1),
            ("offset", 2**62),
            ("offset", 1.5),
            ("bytes", -1),
            ("bytes", 2**62),
            ("bytes", 64),
            ("shape", [96, 151]),
            ("shape", None),
            ("type", "vector"),
            ("type", "int9"),
            ("type", "bf16"),
            ("sparse", 1),
            ("sparse", False),
            ("layout", "0"),
            ("layout", "-000000000000001"),
            ("layout", 3),
            ("layout", "0123456789abcdef"),
        ]
    ),
    *(
        lambda h, key=key, value=value: h["tensors"]["final_norm.weight"].update({key: value})
        for key, value in [("bytes", 4), ("type", "int8"), ("shape", [95])]
    ),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_header_is_refused(packed: Path, number: int) -> None:
    def change(header: dict[str, Any]) -> None:
        HOSTILE[number](header)

    rewrite(packed / FILE, change)
    with pytest.raises((FormatError, UnsupportedModelError, ConfigError)):
        Engine(packed)


def sparse_tensor(file: Path) -> slice:
    """Where a matrix of 150 outputs and 96 inputs without its zeros lies in the file."""
    whole = file.read_bytes()
    _, _, length, _ = PREFIX.unpack(whole[: PREFIX.size])
    header = json.loads(whole[PREFIX.size : PREFIX.size + length])
    entry = header["tensors"]["layers.0.ffn.up.weight"]
    assert entry["sparse"]
    start = -(-(PREFIX.size + length) // 4096) * 4096 + entry["offset"]
    return slice(start, start + entry["bytes"])


def test_panels_whose_masks_or_offsets_lie_are_refused(packed: Path) -> None:
    """What they say there is must be there: nothing reads beyond the file."""
    file = packed / FILE
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    place = sparse_tensor(file)
    panels = -(-150 // kernels.geometry(kernels.selected_tier(), "int8")[0])
    for first, last, value in (
        (64, place.stop - place.start, 0xFF),  # every mask is full
        (64, place.stop - place.start, 0),  # every mask is empty
        (0, 8, 1),  # the first panel begins later
        (8, 16, 0xFF),
        (8 * panels, 8 * panels + 8, 0),  # the last panel ends before the first
    ):
        damaged = whole.copy()
        damaged[place][first:last] = value
        file.write_bytes(damaged.tobytes())
        with pytest.raises(FormatError, match=r"layers\.0\.ffn\.up\.weight: packed weights: "):
            Engine(packed)


def test_damaged_panels_do_no_harm(packed: Path) -> None:
    """Whatever they hold, they are refused or run."""
    file = packed / FILE
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    place = sparse_tensor(file)
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = whole.copy()
        where = rng.integers(place.start, place.stop, 1 + int(rng.integers(8)))
        damaged[where] = rng.integers(0, 256, where.size, dtype=np.uint8)
        file.write_bytes(damaged.tobytes())
        with contextlib.suppress(FormatError):
            Engine(packed).session().extend(TOKENS)


def test_not_a_number_in_a_vector_is_refused(packed: Path) -> None:
    file = packed / FILE
    whole = bytearray(file.read_bytes())
    _, _, length, _ = PREFIX.unpack(bytes(whole[: PREFIX.size]))
    header = json.loads(whole[PREFIX.size : PREFIX.size + length])
    start = -(-(PREFIX.size + length) // 4096) * 4096
    struct.pack_into("<f", whole, start + header["tensors"]["final_norm.weight"]["offset"], np.nan)
    file.write_bytes(whole)
    with pytest.raises(FormatError, match=r"final_norm\.weight: holds values"):
        Engine(packed)


def test_the_model_outlives_its_engine(packed: Path) -> None:
    """The file stays mapped for as long as anything runs on it."""
    engine = Engine(packed)
    session = engine.session()
    expected = engine.session().extend(TOKENS)
    sf.pack(half_zero(), packed)
    del engine
    np.testing.assert_array_equal(session.extend(TOKENS), expected)

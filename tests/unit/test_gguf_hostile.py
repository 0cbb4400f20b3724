"""GGUF files that lie: each an error, at once, without much memory."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from reference.gguf_files import finish, write_llama
from reference.models import random_checkpoint
from slimformer.checkpoint import load
from slimformer.checkpoint.gguf_header import open_gguf
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.errors import FormatError, SlimformerError, UnsupportedModelError

STRING, ARRAY, UINT32 = 8, 9, 4
HUGE = (1 << 63) - 1


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(n_tensors: int, n_values: int, rest: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_values) + rest


def tensor(name: str = "t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + axes + struct.pack("<IQ", kind, offset)


def padded(data: bytes, extra: int) -> bytes:
    return data + b"\0" * (-len(data) % 32 + extra)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[bytes], None]:
    """Opens a file with these bytes; hostile ones must not make it allocate."""

    def check(data: bytes) -> None:
        path = tmp_path / "hostile.gguf"
        path.write_bytes(data)
        tracemalloc.start()
        try:
            open_gguf(path)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 1 << 20

    return check


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too short"),
        (b"GG", "too short"),
        (b"GGML" + bytes(40), "expected it to start with"),
        (b"GGUF", "truncated"),
        (header(HUGE, 0, b""), "tensor count"),
        (header(0, HUGE, b""), "metadata count"),
        (header(0, 1 << 20, b""), "truncated"),
        (header(1 << 20, 0, b""), "truncated"),
        (header(0, 1, struct.pack("<Q", HUGE)), "truncated"),
        (header(0, 1, text("k" * 300) + bytes(8)), "at most 256 bytes"),
        (header(0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + bytes(8)), "not UTF-8"),
        (header(0, 1, text("k") + struct.pack("<I", 99)), "unknown value type 99"),
        (header(0, 1, text("k") + struct.pack("<IQ", STRING, HUGE)), "truncated"),
        (header(0, 1, text("k") + struct.pack("<IIQ", ARRAY, UINT32, HUGE)), "length of"),
        (header(0, 1, text("k") + struct.pack("<IIQ", ARRAY, UINT32, 1 << 24)), "truncated"),
        (header(0, 1, text("k") + struct.pack("<IIQ", ARRAY, STRING, 1 << 24)), "truncated"),
        (header(0, 1, text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1)), "unknown value type 9"),
        (header(0, 2, (text("k") + struct.pack("<II", UINT32, 1)) * 2), "found twice"),
        (header(1, 0, tensor(shape=())), "axes, found 0"),
        (header(1, 0, tensor(shape=(1,) * 5)), "axes, found 5"),
        (header(1, 0, text("t") + struct.pack("<I", 1 << 31)), "axes"),
        (header(1, 0, tensor(shape=(0,))), "sizes from 1"),
        (header(1, 0, tensor(shape=(HUGE, HUGE))), "sizes from 1"),
        (header(1, 0, tensor(shape=(1 << 24,) * 4)), "truncated"),
        (header(1, 0, tensor(shape=(31,), kind=8)), "do not divide"),
        (header(1, 0, tensor(offset=7)), "aligned to 32"),
        (header(1, 0, tensor(offset=HUGE - 31)), "aligned|truncated"),
        (padded(header(1, 0, tensor()), 15), "truncated"),
        (padded(header(2, 0, tensor() * 2), 64), "found twice"),
        (padded(header(2, 0, tensor("a") + tensor("b")), 64), "overlaps tensor a"),
        (
            header(0, 1, text("general.alignment") + struct.pack("<II", UINT32, 0)),
            "power of two",
        ),
        (
            header(0, 1, text("general.alignment") + struct.pack("<II", UINT32, 24)),
            "power of two",
        ),
        (
            header(0, 1, text("general.alignment") + struct.pack("<IQ", STRING, 0)),
            "general.alignment: expected an integer",
        ),
    ],
)
def test_lies_are_format_errors(opened: Callable[[bytes], None], data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        opened(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(0, 0, b"", version=1), "version"),
        (header(0, 0, b"", version=4), "version"),
        (header(0, 0, b"", version=3 << 24), "big-endian"),
        (header(1, 0, tensor(kind=4)), "unknown element type 4"),
    ],
)
def test_other_versions_and_types_are_unsupported(
    opened: Callable[[bytes], None], data: bytes, message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        opened(data)


def test_a_file_may_end_with_its_last_tensor(opened: Callable[[bytes], None]) -> None:
    opened(padded(header(1, 0, tensor()), 16))
    opened(header(0, 0, b""))


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    attention = AttentionConfig(2, 1, 4, 4, (0, 0), 0.5, RopeConfig(4))
    config = ModelConfig("llama", 5, 8, 8, 1e-5, True, 16, (LayerConfig(attention, FfnConfig(6)),))
    folder = tmp_path_factory.mktemp("hostile")
    write_llama(folder / "model.gguf", random_checkpoint(config, 1))
    return (folder / "model.gguf").read_bytes()


def test_a_file_cut_anywhere_is_a_format_error(tmp_path: Path, model_bytes: bytes) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(model_bytes)
    load(path)
    last = (len(model_bytes) - 32) // 32 * 32  # the writer pads the last tensor
    for length in [*range(4, 1200), *range(1200, last, 37)]:
        path.write_bytes(model_bytes[:length])
        with pytest.raises(FormatError):
            load(path)


def test_flipped_bytes_give_a_model_or_a_typed_error(tmp_path: Path, model_bytes: bytes) -> None:
    path = tmp_path / "flipped.gguf"
    rng = np.random.default_rng(3)
    for _ in range(1500):
        data = bytearray(model_bytes)
        for position in rng.integers(0, 1600, size=int(rng.integers(1, 4))):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        try:
            model = load(path)
        except SlimformerError:
            continue
        for name in model.tensors:
            assert model.read(name).shape == model.tensors[name].shape


def test_metadata_of_another_type_names_the_key(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_string("llama.block_count", "three")
    writer.add_uint32("llama.embedding_length", 8)
    finish(writer)
    with pytest.raises(FormatError, match=r"llama.block_count: expected an integer, found 'three'"):
        load(tmp_path / "model.gguf")

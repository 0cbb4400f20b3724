"""Matrices kept without their zeros on disk."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import Checkpoint, Tensor, load, save, sparse_file
from slimformer.checkpoint.checkpoint import DTYPES
from slimformer.checkpoint.safetensors_files import SINGLE_FILE, open_file, write_file
from slimformer.engine import Engine
from slimformer.errors import FormatError, StorageError, UnsupportedModelError
from slimformer.prune.sparsify import layer_matrices, sparsify

NAME = "model.layers.0.mlp.down_proj.weight"


def sparse_model(
    seed: int, share: float, *, ragged: bool = True, dtype: str = "bf16"
) -> Checkpoint:
    config = random_config(np.random.default_rng(seed), ragged=ragged)
    source = random_checkpoint(config, seed, dtype=dtype, tokenizer=True)
    return dataclasses.replace(sparsify(source, share), sparse=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@given(
    seed=st.integers(0, 10_000),
    ragged=st.booleans(),
    dtype=st.sampled_from(sorted(DTYPES)),
    share=st.sampled_from([0.0, 0.03, 0.5, 0.9, 1.0]),
)
def test_what_is_saved_is_what_was_there(
    seed: int, ragged: bool, dtype: str, share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sparse")
    source = sparse_model(seed, share, ragged=ragged, dtype=dtype)
    save(source, folder / "a")
    read = load(folder / "a")
    assert read.sparse
    assert read.config == source.config
    for name in source.tensors:
        assert read.read(name).dtype == source.read(name).dtype
        assert read.read(name).tobytes() == source.read(name).tobytes()
    read.save(folder / "b")
    assert contents(folder / "a") == contents(folder / "b")


def test_a_zero_with_a_sign_is_kept(tmp_path: Path) -> None:
    source = sparse_model(1, 0.5, ragged=False)
    name = layer_matrices(source)[0]
    matrix = source.read(name).copy()
    matrix[0, 0] = -0.0
    source.with_tensors({name: matrix}).save(tmp_path / "a")
    assert load(tmp_path / "a").read(name).tobytes() == matrix.tobytes()


def test_the_file_is_as_much_smaller_as_it_says(tmp_path: Path) -> None:
    source = sparse_model(3, 0.5, ragged=False)
    save(source, tmp_path / "sparse")
    save(dataclasses.replace(source, sparse=False), tmp_path / "dense")
    parts = sparse_file.without_zeros(source.tensors)
    for name in layer_matrices(source):
        outputs, inputs = source.tensors[name].shape
        assert parts[name + ".mask"].nbytes == outputs * -(-inputs // 8)
        assert parts[name + ".values"].nbytes == 2 * np.count_nonzero(source.read(name))
    saved = (tmp_path / "sparse" / sparse_file.FILE).stat().st_size
    assert saved < (tmp_path / "dense" / SINGLE_FILE).stat().st_size


def test_it_runs_as_the_dense_folder_does(tmp_path: Path) -> None:
    source = sparse_model(4, 0.6)
    save(source, tmp_path / "sparse")
    save(dataclasses.replace(source, sparse=False), tmp_path / "dense")
    tokens = np.arange(20) % source.config.vocab_size
    sparse, dense = (
        Engine(str(tmp_path / kind)).session().extend(tokens) for kind in ("sparse", "dense")
    )
    np.testing.assert_array_equal(sparse, dense)


def test_a_sparse_folder_may_become_dense_and_back(tmp_path: Path) -> None:
    source = sparse_model(5, 0.5)
    save(source, tmp_path / "a")
    save(dataclasses.replace(load(tmp_path / "a"), sparse=False), tmp_path / "a")
    assert not (tmp_path / "a" / sparse_file.FILE).exists()
    assert not load(tmp_path / "a").sparse
    save(source, tmp_path / "a")
    assert load(tmp_path / "a").sparse


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a sparse model of one shape in all layers."""
    config = random_config(np.random.default_rng(0), ragged=False)
    source = random_checkpoint(config, 0, dtype="bf16", tokenizer=True)
    save(dataclasses.replace(sparsify(source, 0.5), sparse=True), tmp_path / "model")
    return tmp_path / "model"


def stored(folder: Path) -> dict[str, Tensor]:
    """What the file holds, in memory, so that the file may be written again."""
    tensors = open_file(folder / sparse_file.FILE, masks=(sparse_file.MASK,))
    return {name: Tensor.of(tensor.read().copy()) for name, tensor in tensors.items()}


def rewrite(folder: Path, **changed: npt.NDArray[Any] | None) -> None:
    """Replace the ``mask`` or the ``values`` of one matrix, or leave it out."""
    path = folder / sparse_file.FILE
    written = stored(folder)
    for part, array in changed.items():
        if array is None:
            del written[f"{NAME}.{part}"]
        else:
            written[f"{NAME}.{part}"] = Tensor.of(array)
    write_file(path, written)


def parts(folder: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Mask and values of that matrix."""
    tensors = stored(folder)
    return tensors[f"{NAME}.mask"].read(), tensors[f"{NAME}.values"].read()


def read_all(folder: Path) -> None:
    checkpoint = load(folder)
    for name in checkpoint.tensors:
        checkpoint.read(name)


@pytest.mark.parametrize("part", ["mask", "values"])
def test_one_without_the_other(saved: Path, part: str) -> None:
    rewrite(saved, **{part: None})
    with pytest.raises(FormatError, match="expected either the matrix"):
        load(saved)


def test_both_ways_at_once(saved: Path) -> None:
    matrix = load(saved).read("layers.0.ffn.down.weight")
    write_file(saved / sparse_file.FILE, {**stored(saved), NAME: Tensor.of(matrix)})
    with pytest.raises(FormatError, match="either the matrix"):
        load(saved)


def test_fewer_values_than_bits(saved: Path) -> None:
    rewrite(saved, values=parts(saved)[1][:-1])
    with pytest.raises(FormatError, match="as many values as bits"):
        read_all(saved)


def test_more_bits_than_values(saved: Path) -> None:
    mask, _ = parts(saved)
    mask[0, 0] ^= 1
    rewrite(saved, mask=mask)
    with pytest.raises(FormatError, match=r"down_proj.weight: expected as many values as bits"):
        read_all(saved)


def test_a_mask_of_another_shape(saved: Path) -> None:
    rewrite(saved, mask=parts(saved)[0][:-1])
    with pytest.raises(FormatError, match=r"mask: expected U8 of shape"):
        load(saved)


def test_more_values_than_the_matrix_has_places(saved: Path) -> None:
    shape = load(saved).tensors["layers.0.ffn.down.weight"].shape
    rewrite(saved, values=np.ones(shape[0] * shape[1] + 1, DTYPES["bf16"]))
    with pytest.raises(FormatError, match="one axis of at most"):
        load(saved)


def test_a_zero_among_the_values(saved: Path) -> None:
    values = parts(saved)[1]
    values[3] = 0
    rewrite(saved, values=values)
    with pytest.raises(FormatError, match="no zeros among the values"):
        read_all(saved)


def test_bits_beyond_the_last_input(saved: Path) -> None:
    inputs = load(saved).tensors["layers.0.ffn.down.weight"].shape[1]
    mask, values = parts(saved)
    assert inputs % 8 != 0
    mask[0, -1] |= 0x80
    rewrite(saved, mask=mask, values=np.append(values, values[:1]))
    with pytest.raises(FormatError, match="no bit beyond input"):
        read_all(saved)


def test_a_mask_of_floats(saved: Path) -> None:
    mask, _ = parts(saved)
    rewrite(saved, mask=mask.astype(np.float32))
    with pytest.raises(UnsupportedModelError, match="element type F32"):
        load(saved)


def test_bytes_are_no_weights(saved: Path) -> None:
    rewrite(saved, values=parts(saved)[0].reshape(-1))
    with pytest.raises(UnsupportedModelError, match="element type U8"):
        load(saved)


def test_a_truncated_file(saved: Path) -> None:
    path = saved / sparse_file.FILE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FormatError, match="not a valid safetensors file"):
        load(saved)


def test_two_files_of_weights(saved: Path) -> None:
    (saved / SINGLE_FILE).write_bytes((saved / sparse_file.FILE).read_bytes())
    with pytest.raises(FormatError, match="expected one of"):
        load(saved)


def test_a_foreign_file_is_not_replaced(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"notes\.txt"):
        save(load(saved), saved)


def test_the_header_is_plain_safetensors(saved: Path) -> None:
    data = (saved / sparse_file.FILE).read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    assert header[NAME + ".mask"]["dtype"] == "U8"
    assert header[NAME + ".values"]["dtype"] == "BF16"

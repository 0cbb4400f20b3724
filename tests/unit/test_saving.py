from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import slimformer
from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import Checkpoint, cast, check_output, load, native, replace_folder, save
from slimformer.checkpoint.checkpoint import DTYPES, Tensor
from slimformer.checkpoint.fields import Fields
from slimformer.errors import ConfigError, FormatError, StorageError, UnsupportedModelError


def model(seed: int, *, ragged: bool = True, dtype: str = "f32") -> Checkpoint:
    config = random_config(np.random.default_rng(seed), ragged=ragged)
    source = random_checkpoint(config, seed, dtype=dtype, tokenizer=True)
    return dataclasses.replace(source, recipe={"schema": 1, "kept": [1, 2], "note": "ü"})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same(first: Checkpoint, second: Checkpoint) -> bool:
    return (
        first.config == second.config
        and first.tokenizer == second.tokenizer
        and first.recipe == second.recipe
        and all(
            first.tensors[name].dtype == second.tensors[name].dtype
            and first.read(name).tobytes() == second.read(name).tobytes()
            for name in first.config.tensor_shapes()
        )
    )


@given(seed=st.integers(0, 10_000), ragged=st.booleans(), dtype=st.sampled_from(sorted(DTYPES)))
def test_what_is_saved_is_what_was_there(
    seed: int, ragged: bool, dtype: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("save")
    source = model(seed, ragged=ragged, dtype=dtype)
    save(source, folder / "a")
    read = load(folder / "a")
    assert same(read, source)
    assert read.fingerprint == source.fingerprint
    read.save(folder / "b")
    assert contents(folder / "a") == contents(folder / "b")
    read.save(folder / "a")  # over the files that it reads from
    assert contents(folder / "a") == contents(folder / "b")


def test_uniform_models_are_plain_and_ragged_ones_say_so(tmp_path: Path) -> None:
    seeds = [s for s in range(40) if _opens_in_transformers(model(s, ragged=False))]
    save(model(seeds[0], ragged=False), tmp_path / "plain")
    plain = json.loads((tmp_path / "plain/config.json").read_text())
    assert plain["architectures"] == ["LlamaForCausalLM"]
    assert plain["slimformer"] == {"schema": 1}
    save(model(1), tmp_path / "ragged")
    ragged = json.loads((tmp_path / "ragged/config.json").read_text())
    assert ragged["architectures"] == ["SlimformerForCausalLM"]
    assert ragged["model_type"] == "slimformer"
    assert len(ragged["slimformer"]["layers"]) == len(model(1).config.layers)


def _opens_in_transformers(checkpoint: Checkpoint) -> bool:
    return bool(native.describe(checkpoint.config)["model_type"] == "llama")


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_casting_in_memory_and_in_saving_give_the_same_bits(tmp_path: Path, dtype: Any) -> None:
    source = model(3)
    save(source, tmp_path / "model", dtype=dtype)
    assert same(load(tmp_path / "model"), cast(source, dtype))
    assert {tensor.dtype for tensor in cast(source, dtype).tensors.values()} == {dtype}


def test_casting_keeps_what_fits_and_refuses_the_rest() -> None:
    source = model(3)
    assert cast(source, "auto") is source
    wide = source.with_tensors(
        {"final_norm.weight": np.full(source.config.n_channels, 1e6, np.float32)}
    )
    with pytest.raises(ConfigError, match=r"final_norm.weight: values beyond the range of f16"):
        cast(wide, "f16").read("final_norm.weight")
    assert np.isfinite(cast(wide, "bf16").read_f32("final_norm.weight")).all()
    with pytest.raises(ConfigError, match="dtype"):
        cast(source, "int8")  # type: ignore[arg-type]


def test_mixed_types_are_kept_and_aligned(tmp_path: Path) -> None:
    source = cast(model(3), "bf16")
    norms = {name: source.read_f32(name) for name in source.tensors if "norm" in name}
    source = source.with_tensors(norms)
    save(source, tmp_path / "model")
    read = load(tmp_path / "model")
    assert same(read, source)
    assert all(tensor.read().flags.aligned for tensor in read.tensors.values())


def test_a_tensor_that_lies_about_itself_is_not_written(tmp_path: Path) -> None:
    source = model(3)
    name = "final_norm.weight"
    wrong = Tensor(source.tensors[name].shape, "f32", lambda: np.zeros(1, np.float32))
    source = dataclasses.replace(source, tensors={**source.tensors, name: wrong})
    with pytest.raises(FormatError, match="read float32 of shape"):
        save(source, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_only_own_folders_are_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    save(model(1), target)  # an empty folder is nobody's
    save(model(2), target)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"it holds notes\.txt"):
        save(model(3), target)
    assert (target / "notes.txt").read_text() == "mine"
    assert same(load(target), model(2))
    (target / "notes.txt").unlink()
    (target / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(StorageError, match="not a folder that Slimformer wrote"):
        save(model(3), target)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(StorageError, match="found a file"):
        save(model(3), file)
    with pytest.raises(StorageError, match="cannot write"):
        save(model(3), file / "below")
    assert file.read_text() == "mine"


def test_an_output_can_be_checked_beforehand(tmp_path: Path) -> None:
    check_output(tmp_path / "a/b/model")
    save(model(1), tmp_path / "model")
    check_output(tmp_path / "model")
    (tmp_path / "model/notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"it holds notes\.txt"):
        check_output(tmp_path / "model")
    with pytest.raises(StorageError, match="found a file"):
        check_output(tmp_path / "model/notes.txt/below")
    with pytest.raises(StorageError, match="are needed at least"):
        check_output(tmp_path / "other", needed_bytes=1 << 60)


def test_missing_parents_are_made_and_links_followed(tmp_path: Path) -> None:
    save(model(1), tmp_path / "a/b/model")
    (tmp_path / "link").symlink_to(tmp_path / "a/b/model")
    save(model(2), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same(load(tmp_path / "a/b/model"), model(2))


def test_a_full_disk_leaves_the_old_model(tmp_path: Path) -> None:
    save(model(1), tmp_path / "model")
    before = contents(tmp_path / "model")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError, match="nothing was changed"):
            save(model(2), tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path / "model") == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_ctrl_c_leaves_the_old_model(tmp_path: Path) -> None:
    save(model(1), tmp_path / "model")
    before = contents(tmp_path / "model")
    source = model(2)

    def interrupt() -> Any:
        raise KeyboardInterrupt

    name = "final_norm.weight"
    tensors = {**source.tensors, name: dataclasses.replace(source.tensors[name], read=interrupt)}
    with pytest.raises(KeyboardInterrupt):
        save(dataclasses.replace(source, tensors=tensors), tmp_path / "model")
    assert contents(tmp_path / "model") == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_a_save_killed_at_any_step_leaves_the_old_model_or_the_new(
    tmp_path: Path, way: str
) -> None:
    save(model(1), tmp_path / "old")
    save(model(2), tmp_path / "source")
    places = [str(Path(module.__file__ or "").parents[1]) for module in (reference, slimformer)]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "reference.killed_saves", str(tmp_path / "source")),
            *(str(tmp_path / "old"), str(tmp_path / "here" / "model"), way),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found_old, found_new = map(int, result.stdout.split())
    assert found_old > 10
    assert found_new > 1  # also when killed while it removes the old one


def test_a_save_in_progress_is_not_a_leftover(tmp_path: Path) -> None:
    save(model(1), tmp_path / "model")
    with replace_folder.replace_folder(tmp_path / "model", lambda folder: None) as staging:
        save(model(2), tmp_path / "model")
        assert staging.is_dir()
        save(model(3), staging)
    assert same(load(tmp_path / "model"), model(3))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_without_an_exchange_two_renames_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replace_folder, "_exchange", lambda first, second: False)
    save(model(1), tmp_path / "model")
    save(model(2), tmp_path / "model")
    assert same(load(tmp_path / "model"), model(2))
    (tmp_path / "model").rename(tmp_path / ".model.slimformer-old")
    assert same(load(tmp_path / "model"), model(2))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_without_rights_is_a_storage_error(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="cannot write"):
            save(model(1), tmp_path / "model")
    finally:
        tmp_path.chmod(0o700)


def test_files_have_the_usual_rights(tmp_path: Path) -> None:
    save(model(1), tmp_path / "model")
    reference = tmp_path / "reference"
    reference.mkdir()
    assert (tmp_path / "model").stat().st_mode == reference.stat().st_mode


@given(seed=st.integers(0, 10_000))
def test_every_shape_can_be_described(seed: int) -> None:
    config = random_config(np.random.default_rng(seed))
    text = json.dumps(native.describe(config))
    settings = Fields("config.json", json.loads(text))
    if settings.raw("model_type") == native.MODEL_TYPE:
        assert native.parse(settings)[1] == config


_KEPT = ("layers", 0, "attention", "rope", "kept")


def _ragged_description() -> dict[str, Any]:
    return {
        "model_type": "slimformer",
        "vocab_size": 300,
        "hidden_size": 4,
        "num_hidden_layers": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 16,
        "tie_word_embeddings": True,
        "slimformer": {
            "schema": 1,
            "family": "llama",
            "norm_divisor": 4,
            "layers": [
                {
                    "attention": {
                        "n_heads": 2,
                        "n_kv_heads": 1,
                        "head_dim": 4,
                        "value_dim": 3,
                        "q_to_kv": [0, 0],
                        "scale": 0.5,
                        "rope": {"rotary_dim": 2, "theta": 10000.0, "scaling": None},
                        "qkv_bias": False,
                        "output_bias": False,
                    },
                    "ffn": {"link": "low_rank", "rank": 2},
                },
                {"attention": None, "ffn": {"n_neurons": 5, "bias": False}},
            ],
        },
    }


def test_the_description_in_this_test_is_valid() -> None:
    _, config = native.parse(Fields("config.json", _ragged_description()))
    assert len(config.layers) == 2


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), "1", "schema: expected an integer"),
        (("norm_divisor",), 0, "norm_divisor"),
        (("layers",), {}, "layers: expected a list"),
        (("layers",), [], "num_hidden_layers"),
        (("layers", 0), 3, "layer 0: expected an object"),
        (("layers", 0, "router"), {}, "layer 0: unexpected 'router'"),
        (("layers", 0, "attention"), 3, "attention: expected an object"),
        (("layers", 0, "attention", "sink"), 3, "layer 0: attention: unexpected 'sink'"),
        (("layers", 0, "attention", "window"), 0, "window: expected an integer from 1"),
        (("layers", 0, "attention", "window"), "wide", "window: expected an integer from 1"),
        (("layers", 0, "attention", "soft_cap"), -1.0, "soft_cap: expected a finite number"),
        (("layers", 0, "attention", "qk_norm"), "all", "qk_norm: expected one of head, width"),
        (("layers", 0, "attention", "qk_norm"), "width", "q_norm_divisor: expected an integer"),
        (("layers", 0, "attention", "q_norm_divisor"), 9, "belongs to a qk_norm over the width"),
        (_KEPT, [0], "kept: expected an object"),
        (_KEPT, {}, "kept: trained_dim: expected an integer"),
        (_KEPT, {"trained_dim": 5, "pairs": [0]}, "trained_dim: expected even, found 5"),
        (_KEPT, {"trained_dim": 1 << 17, "pairs": [0]}, "trained_dim: expected at most 65536"),
        (_KEPT, {"trained_dim": 8, "pairs": [4]}, "pairs: expected whole numbers from 0 to 3"),
        (_KEPT, {"trained_dim": 8, "pairs": [-1]}, "pairs: expected whole numbers from 0 to 3"),
        (_KEPT, {"trained_dim": 8, "pairs": ["0"]}, "pairs: expected a list of integers"),
        (_KEPT, {"trained_dim": 8, "pairs": [3, 1]}, "pairs: expected ascending numbers"),
        (_KEPT, {"trained_dim": 8, "pairs": [1, 1]}, "pairs: expected ascending numbers"),
        (_KEPT, {"trained_dim": 8, "pairs": [0, 2]}, "rotary_dim: expected 4, two for each"),
        (_KEPT, {"trained_dim": 8, "pairs": []}, "rotary_dim: expected 0, two for each"),
        (_KEPT, {"trained_dim": 2, "pairs": [0]}, "pairs: expected fewer than all 1"),
        (_KEPT, {"trained_dim": 8, "pairs": [0], "turn": 1}, "unexpected 'turn'"),
        (("layers", 0, "parallel"), 1, "parallel: expected true or false"),
        (("layers", 1, "ffn", "activation"), [], "activation: expected one of silu"),
        (("layers", 1, "ffn", "norm_place"), "above", "norm_place: expected one of before"),
        (("layers", 1, "ffn", "gated"), "no", "gated: expected true or false"),
        (("norm",), "batch", "norm: expected one of rms, layer"),
        (("norm_offset",), 0.5, "norm_offset: expected 0 or 1"),
        (("embedding_scale",), float("inf"), "embedding_scale"),
        (("learned_positions",), "yes", "learned_positions: expected true or false"),
        (("position_offset",), -1, "position_offset: expected an integer from 0"),
        (("logit_soft_cap",), 0, "logit_soft_cap"),
        (("layers", 0, "attention", "n_heads"), 1 << 60, "n_heads"),
        (("layers", 0, "attention", "n_kv_heads"), 1 << 20, "n_kv_heads"),
        (("layers", 0, "attention", "q_to_kv"), [0.0, 0.0], "q_to_kv: expected a list"),
        (("layers", 0, "attention", "q_to_kv"), "00", "q_to_kv"),
        (("layers", 0, "attention", "scale"), None, "scale: expected a finite number"),
        (("layers", 0, "attention", "rope"), [], "rope: expected an object"),
        (("layers", 0, "attention", "rope", "scaling"), {"type": "new"}, "linear, dynamic, llama3"),
        (("layers", 0, "attention", "rope", "scaling"), {"type": "yarn"}, "factor: expected"),
        (("layers", 0, "attention", "rope", "turns"), 3, "unexpected 'turns'"),
        (("layers", 0, "attention", "qkv_bias"), 1, "qkv_bias: expected a boolean"),
        (("layers", 0, "ffn", "rank"), 0, "rank"),
        (("layers", 0, "ffn", "link"), "cubic", "one of full, low_rank, diagonal, constant"),
        (("layers", 0, "ffn", "link"), "constant", "expected no rank with kind constant"),
        (("layers", 1, "ffn", "n_neurons"), -1, "n_neurons"),
        (("layers", 1, "ffn", "gate"), True, "unexpected 'gate'"),
    ],
)
def test_ragged_descriptions_are_checked(path: tuple[Any, ...], value: Any, message: str) -> None:
    settings = _ragged_description()
    place = settings["slimformer"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises((FormatError, ConfigError), match=message):
        native.parse(Fields("config.json", settings))


def test_a_later_schema_is_unsupported() -> None:
    settings = _ragged_description()
    settings["slimformer"]["schema"] = 2
    with pytest.raises(UnsupportedModelError, match="another version of Slimformer"):
        native.parse(Fields("config.json", settings))
    settings["slimformer"] = {"schema": 1, "family": "mamba"}
    with pytest.raises(UnsupportedModelError, match="'mamba'"):
        native.parse(Fields("config.json", settings))

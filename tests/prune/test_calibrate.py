from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from prune.cases import random_model
from reference.models import framing_tokenizer
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.errors import DataError
from slimformer.progress import silent
from slimformer.prune import load_calibration, sample_calibration
from slimformer.prune.calibrate import (
    LEAST_END,
    WINDOW,
    calibration_windows,
    hold_out,
    make_windows,
)
from slimformer.tokenizer import Tokenizer


@pytest.fixture
def model() -> Checkpoint:
    return random_model(np.random.default_rng(1), ragged=False)


def test_files_and_folders_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("plain text", encoding="utf-8")
    lines = [json.dumps({"text": "first", "id": 3}), "", json.dumps({"text": "second"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert load_calibration([tmp_path]) == ["first\n\nsecond", "plain text"]
    assert load_calibration([tmp_path / "b.txt"]) == ["plain text"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b" \n ", "no text"),
        ("latin.txt", b"\xe9t\xe9", "cannot read"),
        ("broken.jsonl", b'{"text": "a"}\n{', "line 2: not JSON"),
        ("number.jsonl", b'{"text": 3}', "line 1"),
        ("list.jsonl", b"[1]", "line 1"),
        ("empty.jsonl", b"", "no text"),
    ],
)
def test_text_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_calibration([tmp_path / name])


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        load_calibration([tmp_path / "missing"])
    with pytest.raises(DataError, match=r"\.txt"):
        load_calibration([tmp_path])
    with pytest.raises(DataError, match="no paths"):
        load_calibration([])


def test_windows_come_evenly_from_all_texts(model: Checkpoint) -> None:
    texts = ["a" * 5000, "b" * 900]
    windows = make_windows(model, texts, tokens=640, seed=0, window=64)
    assert windows.shape == (10, 64)
    assert windows.dtype == np.int32
    assert len(np.unique(windows[:, 0])) == 2
    ids, counts = np.unique(windows[:, 0], return_counts=True)
    assert counts.tolist() == [5, 5], ids


def test_windows_do_not_overlap_and_follow_the_seed(model: Checkpoint) -> None:
    text = " ".join(str(number) for number in range(400))
    first = make_windows(model, [text], tokens=512, seed=1, window=64)
    again = make_windows(model, [text], tokens=512, seed=1, window=64)
    other = make_windows(model, [text], tokens=512, seed=2, window=64)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len({row.tobytes() for row in first}) == len(first)


def test_short_texts_are_joined(model: Checkpoint) -> None:
    assert make_windows(model, ["abcdefgh"] * 100, tokens=256, seed=0, window=64).shape == (4, 64)
    assert make_windows(model, ["abc", "def"], tokens=256, seed=0, window=64).shape == (1, 6)
    # There is no more than the text has.
    assert make_windows(model, ["x" * 200], tokens=10**6, seed=0, window=64).shape == (3, 64)


def test_a_window_begins_as_the_model_asks(model: Checkpoint) -> None:
    assert model.tokenizer is not None
    asking = dataclasses.replace(
        model, tokenizer=dataclasses.replace(model.tokenizer, add_bos=True)
    )
    windows = make_windows(asking, ["x" * 500], tokens=256, seed=0, window=64)
    assert (windows[:, 0] == 0).all()
    assert (windows[:, 1:] != 0).all()


@pytest.fixture
def encoder(model: Checkpoint) -> Checkpoint:
    config = dataclasses.replace(model.config, causal=False, tied_head=True)
    tensors = {name: model.tensors[name] for name in config.tensor_shapes()}
    return dataclasses.replace(model, config=config, tensors=tensors, tokenizer=framing_tokenizer())


def test_an_encoders_windows_are_framed_texts_of_their_median_length(encoder: Checkpoint) -> None:
    lines = ["x" * 8] * 5 + ["y" * 3] * 4 + ["z" * 500] * 2
    windows = make_windows(encoder, ["\n".join(lines)], tokens=50, seed=0)
    assert windows.shape == (5, 10)
    assert (windows[:, 0] == 0).all()
    assert (windows[:, -1] == 1).all()
    assert (windows[:, 1:-1] > 1).all()
    assert make_windows(encoder, ["ab", "abc"], tokens=50, seed=0, window=4).shape == (2, 4)
    with pytest.raises(DataError, match="an encoder writes no text"):
        calibration_windows(encoder, None, 64, 0, 1, silent)


def test_text_that_is_too_little(model: Checkpoint, encoder: Checkpoint) -> None:
    for texts in ([], [""], ["a"]):
        with pytest.raises(DataError, match="fewer than two tokens"):
            make_windows(model, texts, tokens=64, seed=0)
        with pytest.raises(DataError, match="fewer than two tokens"):
            make_windows(encoder, [text.strip("a") for text in texts], tokens=64, seed=0)
    with pytest.raises(DataError, match="no tokenizer"):
        make_windows(dataclasses.replace(model, tokenizer=None), ["text"], tokens=64, seed=0)


def test_the_model_writes_its_own_text(model: Checkpoint) -> None:
    texts = sample_calibration(model, tokens=640, seed=3, threads=1)
    assert len(texts) == 64
    assert model.tokenizer is not None
    tokenizer = Tokenizer(model.tokenizer)
    assert sum(len(tokenizer.encode(text)) for text in texts) > 300
    told: list[str] = []
    again = sample_calibration(
        model, tokens=640, seed=3, threads=2, progress=lambda what, done, total: told.append(what)
    )
    assert again == texts
    assert told == []  # remembered
    assert sample_calibration(model, tokens=640, seed=4) != texts


def test_what_is_held_out_is_not_calibrated_on(model: Checkpoint) -> None:
    long = "a" * (16 * LEAST_END) + "b" * (LEAST_END + 1)
    short = [chr(ord("c") + index) * 100 for index in range(20)]
    read, held_out = hold_out([*short, long])
    assert read == [*short[:15], *short[16:], long[: len(read[-1])]]
    assert held_out == [short[15], long[len(read[-1]) :]]
    assert len(held_out[-1]) == len(long) // 16 >= LEAST_END
    windows = calibration_windows(model, [long], 10**6, 0, 1, silent)
    assert windows.size < len(long) - LEAST_END
    assert hold_out(short[:3]) == (short[:3], [])


def test_windows_are_no_longer_than_the_model_holds(model: Checkpoint) -> None:
    short = dataclasses.replace(
        model, config=dataclasses.replace(model.config, max_positions=WINDOW // 2)
    )
    windows = calibration_windows(short, ["a" * 4 * WINDOW], 10**4, 0, 1, silent)
    assert windows.shape[1] == WINDOW // 2

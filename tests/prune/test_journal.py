from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from prune.test_allocate import uniform_model
from prune.test_pipeline import TEXT, random_text
from slimformer.checkpoint import cast
from slimformer.errors import StorageError
from slimformer.prune import journal as module
from slimformer.prune import plan, prune
from slimformer.prune.effort import Effort
from slimformer.prune.importance.scores import LayerScores
from slimformer.prune.journal import Journal


@pytest.fixture(autouse=True)
def _every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORD_SECONDS", 0.0)


def array(value: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.full(3, value, np.float32)


def test_work_goes_on_where_it_ended(tmp_path: Path) -> None:
    work = Journal(tmp_path / "w", {"a": 1})
    assert work.resume() is None
    work.record(0, {"x": array(1)}, {"s": array(10)})
    narrow = array(2).astype(ml_dtypes.bfloat16)
    written = work.record(2, {"y": narrow}, {"s": array(20)})
    assert np.array_equal(written["y"].read(), narrow)
    resumed = Journal(tmp_path / "w", {"a": 1}).resume()
    assert resumed is not None
    last, found, standing = resumed
    assert last == 2
    assert np.array_equal(found["x"].read(), array(1))
    assert np.array_equal(found["y"].read(), narrow)
    assert np.array_equal(standing["s"].read(), array(20))


def test_steps_that_follow_quickly_are_written_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = Journal(tmp_path / "w", {})
    monkeypatch.setattr(module, "RECORD_SECONDS", 1e9)
    assert work.record(0, {"x": array(1)}, {}) == {}
    assert not (tmp_path / "w").exists()
    monkeypatch.setattr(module, "RECORD_SECONDS", 0.0)
    assert set(work.record(1, {"y": array(2)}, {})) == {"x", "y"}


def test_other_work_is_not_gone_on_with(tmp_path: Path) -> None:
    Journal(tmp_path / "w", {"a": 1}).record(0, {"x": array(1)}, {})
    assert Journal(tmp_path / "w", {"a": 2}).resume() is None
    assert not (tmp_path / "w").exists()


def test_damaged_files_start_the_work_again(tmp_path: Path) -> None:
    work = Journal(tmp_path / "w", {})
    work.record(0, {"x": array(1)}, {"s": array(1)})
    (file,) = (tmp_path / "w").glob("found*")
    file.write_bytes(b"?")
    assert Journal(tmp_path / "w", {}).resume() is None


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    work = Journal(tmp_path / "file" / "w", {})
    with pytest.raises(StorageError, match="unfinished work"):
        work.record(0, {}, {})


def test_scores_survive_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    scores = LayerScores(layers=0.1, ffn=1 / 3, neurons=rng.random(5), kv_groups=rng.random(2))
    written = Journal(tmp_path, {}).record(0, scores.pack("0."), {})
    back = LayerScores.unpack(written, "0.")
    assert (back.layers, back.attention, back.ffn, back.heads) == (0.1, None, 1 / 3, None)
    for name in ("neurons", "kv_groups"):
        assert np.array_equal(getattr(back, name), getattr(scores, name))


@pytest.mark.parametrize("interrupted", ["measure layers", "price layers"])
def test_an_interrupted_plan_in_nats_is_the_same(tmp_path: Path, interrupted: str) -> None:
    model = uniform_model(layers=4, neurons=48)
    whole = plan(model, keep=0.9, criterion="loss", calibration=TEXT)

    def interrupt(what: str, done: int, total: int) -> None:
        if (what, done) == (interrupted, 2):
            raise KeyboardInterrupt

    def check(what: str, done: int, total: int) -> None:
        assert what != interrupted or done >= 2

    with pytest.raises(KeyboardInterrupt):
        plan(
            model,
            keep=0.9,
            criterion="loss",
            calibration=TEXT,
            state=tmp_path,
            progress=interrupt,
        )
    again = plan(
        model, keep=0.9, criterion="loss", calibration=TEXT, state=tmp_path, progress=check
    )
    assert again == whole


@pytest.mark.parametrize("effort", ["fast", "thorough"])
@pytest.mark.parametrize("interrupted_at", [1, 2])
def test_interrupted_pruning_ends_in_the_same_bytes(
    tmp_path: Path, effort: Effort, interrupted_at: int
) -> None:
    model = cast(uniform_model(layers=4, neurons=96), "bf16")
    whole = plan(model, keep=0.7, calibration=TEXT)
    repair: dict[str, Any] = {
        "calibration": [text * 4 for text in random_text(1)],
        "tokens": 10240,
        "effort": effort,
    }
    expected = prune(model, whole, **repair)
    started: list[tuple[str, int]] = []

    def interrupt(what: str, done: int, total: int) -> None:
        started.append((what, done))
        if done == interrupted_at:
            raise KeyboardInterrupt

    def note(what: str, done: int, total: int) -> None:
        started.append((what, done))

    state = tmp_path / "unfinished"
    for progress in (interrupt, note):
        started.clear()
        try:
            recipe = plan(model, keep=0.7, calibration=TEXT, state=state, progress=progress)
        except KeyboardInterrupt:
            continue
        assert started[0] == ("measure layers", interrupted_at)
        assert recipe == whole
    for progress in (interrupt, note):
        started.clear()
        try:
            slim = prune(model, whole, **repair, state=state, progress=progress)
        except KeyboardInterrupt:
            continue
        assert started[0] == ("repair layers", interrupted_at)
        assert slim.fingerprint == expected.fingerprint
    started.clear()
    assert plan(model, keep=0.7, calibration=TEXT, state=state, progress=note) == whole
    assert started == []

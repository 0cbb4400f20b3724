from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune.test_allocate import uniform_model
from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import cast
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.engine import Engine
from slimformer.errors import ConfigError, DataError, FormatError
from slimformer.progress import silent
from slimformer.prune import Recipe, apply, cut_to_text, explicit, prune
from slimformer.prune.calibrate import LEAST_END, calibration_windows
from slimformer.tokenizer import Tokenizer
from slimformer.train import Recovery, Settings, Step, recover
from slimformer.train.feed import READINGS, Feed, TeacherWriter
from slimformer.train.recovery import stream_pairs
from slimformer.train.schedule import cooled, rate
from slimformer.train.windows import training_windows

TEXT = ["the river of light and the stone engine in the layer of it 0123456789 " * 400]
QUICK = Settings(tokens=4096, window=64, batch=256, learning_rate=3e-3)


def pair() -> tuple[Checkpoint, Checkpoint]:
    """A dense model and what is left of it without a layer and a third of the neurons."""
    dense = uniform_model(layers=4, neurons=48)
    recipe = explicit(dense, drop_layers=[2], neurons=32)
    return dense, prune(dense, recipe, repair="none")


def run(student: Checkpoint, dense: Checkpoint, **changes: Any) -> Recovery:
    options = {name: changes.pop(name) for name in ("state", "report") if name in changes}
    settings = dataclasses.replace(QUICK, **changes)
    return recover(student, dense, settings, texts=TEXT, threads=1, **options)


@pytest.mark.parametrize("lora", [None, 4])
def test_a_pruned_model_comes_closer_to_the_dense_one(lora: int | None) -> None:
    dense, student = pair()
    found = run(student, dense, lora=lora, labels=0.0)
    assert found.after < 0.8 * found.before
    assert found.tokens == 4096
    assert found.checkpoint.config == student.config
    assert found.checkpoint.recipe == student.recipe
    for name in ("embedding.weight", "head.weight"):
        if name in student.tensors:
            np.testing.assert_array_equal(found.checkpoint.read(name), student.read(name))


def test_text_teaches_what_its_teacher_does_not_know() -> None:
    dense, student = pair()
    assert dense.tokenizer is not None
    text = Tokenizer(dense.tokenizer).encode(TEXT[0], add_bos=False)[:64]

    def surprise(model: Checkpoint) -> float:
        return -float(np.mean(Engine(model, threads=1).score([text])[0]))

    alone, both = (run(student, dense, labels=share).checkpoint for share in (0.0, 0.5))
    assert surprise(alone) > 0.9 * surprise(dense)
    assert surprise(both) < 0.5 * surprise(dense)


def test_a_model_without_some_tokens_learns_from_one_without_them() -> None:
    dense, _ = pair()
    tokens = cut_to_text(dense, TEXT, size=270)
    cut = apply(dense, tokens)
    recipe = tokens.then(explicit(cut, drop_layers=[2], neurons=32))
    student = prune(dense, recipe, repair="none")
    found = run(student, dense, labels=0.0)
    assert found.after < 0.8 * found.before
    assert found.checkpoint.config.vocab_size == 270
    assert stream_pairs(student, dense) == [(0, 0), (1, 2)]


def test_one_seed_gives_the_same_bytes_and_another_others() -> None:
    dense, student = pair()
    prints = [run(student, dense, seed=seed).checkpoint.fingerprint for seed in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("lora", [None, 4])
def test_zeros_stay_zero_and_types_stay(lora: int | None) -> None:
    dense, student = pair()
    rng = np.random.default_rng(0)
    names = [f"layers.{index}.ffn.{part}.weight" for index in range(3) for part in ("up", "down")]
    sparse = cast(
        student.with_tensors(
            {n: student.read(n) * (rng.random(student.tensors[n].shape) < 0.5) for n in names}
        ),
        "bf16",
    )
    found = run(sparse, dense, lora=lora)
    assert found.after < found.before
    for name in names:
        changed = found.checkpoint.read(name)
        assert changed.dtype == sparse.read(name).dtype
        assert (changed[sparse.read(name) == 0] == 0).all()
        assert (changed != sparse.read(name)).any()


def test_what_held_out_text_does_not_confirm_is_not_kept() -> None:
    dense, student = pair()
    steps: list[Step] = []
    found = run(student, dense, learning_rate=1e3, patience=2, report=steps.append)
    assert found.checkpoint.fingerprint == student.fingerprint
    assert found.after == found.before
    # It gave up at the second look, and let the rate fall.
    assert found.tokens == 2 * 1024 + 256
    assert [step.share for step in steps[-2:]] == [0.5, 1.0]
    assert steps[-1].seconds_left == 0


def test_the_rate_falls_from_the_best_weights_when_nothing_is_gained_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from slimformer.train import loop

    monkeypatch.setattr(loop, "COOLING", 0.25)
    dense, student = pair()
    looks = iter((5.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0))
    rates: list[float] = []
    weights: list[float] = []

    def look(self: loop.Run) -> float:
        weights.append(float(self.module.final_norm.weight.detach().sum()))
        rates.append(self.optimizer.param_groups[0]["lr"])
        return next(looks)

    put: list[float] = []
    original = loop.Run._put

    def remember(self: loop.Run, values: Any) -> None:
        original(self, values)
        put.append(float(self.module.final_norm.weight.detach().sum()))

    monkeypatch.setattr(loop.Run, "_held_out_loss", look)
    monkeypatch.setattr(loop.Run, "_put", remember)
    found = run(student, dense, patience=2, tokens=8192)
    assert found.tokens == 1.25 * 3 * 2048
    assert put[0] == weights[1] != weights[3]
    assert rates[-1] < 0.3 * rates[3]


def test_the_dense_model_has_nothing_to_recover() -> None:
    dense, _ = pair()
    student = prune(dense, Recipe.identity(dense), repair="none")
    assert run(student, dense, labels=0.0).before < 1e-3


def test_interrupted_work_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimformer.train import loop

    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    dense, student = pair()
    expected = run(student, dense)
    state = tmp_path / "work" / "state"

    def interrupt(step: Step) -> None:
        if step.share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(student, dense, state=state, report=interrupt)
    assert state.exists()
    first: list[Step] = []
    found = run(student, dense, state=state, report=first.append)
    assert first[0].share > 0.5
    assert found.checkpoint.fingerprint == expected.checkpoint.fingerprint
    assert run(student, dense, state=state, tokens=5120).tokens == 5120


def test_states_of_other_work_or_of_none_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimformer.train import loop

    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    dense, student = pair()
    state = tmp_path / "state"

    def interrupt(step: Step) -> None:
        if step.tokens > 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(student, dense, state=state, report=interrupt)
    with pytest.raises(ConfigError, match="other work"):
        run(student, dense, state=state, seed=5)
    whole = state.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"cbuiltins\nprint\n(S'x'\ntR."):
        state.write_bytes(broken)
        with pytest.raises(FormatError, match="state"):
            run(student, dense, state=state)


def test_without_text_the_teacher_writes_some(monkeypatch: pytest.MonkeyPatch) -> None:
    from slimformer.train import windows

    monkeypatch.setattr(windows, "SAMPLE_TOKENS", 1024)
    dense, student = pair()
    found = recover(student, dense, dataclasses.replace(QUICK, tokens=1024), threads=1)
    assert found.after < found.before


def test_a_recovery_is_judged_on_what_was_not_calibrated_on() -> None:
    dense, _ = pair()
    rng = np.random.default_rng(1)
    text = "".join(chr(ord("a") + place) for place in rng.integers(0, 26, 16 * LEAST_END))
    calibrated = calibration_windows(dense, [text], 10**6, 0, 1, silent)
    train, held_out = training_windows(dense, [text], window=64, seed=0)
    tokenizer = Tokenizer(dense.tokenizer) if dense.tokenizer else None
    assert tokenizer is not None
    assert all(tokenizer.decode(window.tolist()) in text[-len(text) // 16 :] for window in held_out)
    assert len(held_out) > 1
    end = tokenizer.encode(text[-len(text) // 16 :], add_bos=False)
    for windows in (calibrated, train):
        assert windows.size + len(end) <= len(text)


def test_a_clock_ends_it_too() -> None:
    dense, student = pair()
    found = run(student, dense, tokens=None, minutes=1e-3)
    assert found.tokens > 0
    assert math.isfinite(found.after)


def test_progress_is_told() -> None:
    dense, student = pair()
    steps: list[Step] = []
    run(student, dense, report=steps.append)
    assert [step.tokens for step in steps] == list(range(256, 4097, 256))
    assert steps[-1].share == 1
    assert steps[-1].seconds_left == 0
    assert steps[-1].held_out < steps[0].held_out
    assert all(step.tokens_per_second > 0 for step in steps)


def test_what_cannot_be_used_is_refused() -> None:
    dense, student = pair()
    with pytest.raises(ConfigError, match="minutes or tokens"):
        Settings()
    for wrong in (
        {"tokens": 0},
        {"minutes": -1.0},
        {"learning_rate": float("nan")},
        {"lora": 0},
        {"window": 1},
        {"batch": 8},
        {"hidden": -1.0},
        {"labels": 1.5},
        {"seed": -1},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            dataclasses.replace(QUICK, **wrong)
    with pytest.raises(DataError, match="two windows"):
        recover(student, dense, QUICK, texts=["too short"])
    with pytest.raises(ConfigError, match="tokens"):
        recover(
            student,
            random_checkpoint(random_config(np.random.default_rng(0), vocab_size=40), 0),
            QUICK,
        )


def test_streams_are_compared_where_both_models_should_agree() -> None:
    dense, student = pair()
    assert stream_pairs(student, dense) == [(0, 0), (1, 2)]
    unknown = dataclasses.replace(student, recipe=None)
    assert stream_pairs(unknown, dense) == []
    assert stream_pairs(dense, dense) == [(0, 0), (1, 1), (2, 2)]


def test_the_rate_goes_by_the_size_of_the_weights() -> None:
    from slimformer.train.settings import RELATIVE_RATE

    dense, student = pair()
    sizes = [
        float(np.sqrt(np.square(student.read_f32(name)).mean()))
        for name in student.tensors
        if name.startswith("layers.") and len(student.tensors[name].shape) == 2
    ]
    expected = RELATIVE_RATE * float(np.median(sizes))
    given = run(student, dense, learning_rate=expected, tokens=512)
    chosen = run(student, dense, learning_rate=None, tokens=512)
    other = run(student, dense, learning_rate=expected / 4, tokens=512)
    largest = [
        max(
            float(np.abs(found.checkpoint.read_f32(name) - student.read_f32(name)).max())
            for name in student.tensors
        )
        for found in (given, chosen, other)
    ]
    assert largest[1] == pytest.approx(largest[0], rel=1e-3)
    assert largest[2] < 0.5 * largest[0]


def test_the_rate_rises_and_falls() -> None:
    assert rate(0) == rate(1) == pytest.approx(0.05)
    assert rate(0.05) == 1
    assert 0.4 < rate(0.525) < 0.6
    assert cooled(0) == 1
    assert cooled(1) == pytest.approx(0.05)


def test_every_window_is_read_once_before_any_is_read_again() -> None:
    feed = Feed(np.arange(7, dtype=np.int32)[:, None], seed=3)
    read = np.concatenate([feed.batch(first, 3)[0] for first in range(0, 21, 3)]).reshape(3, 7)
    assert (np.sort(read) == np.arange(7)).all()
    assert (read[0] != read[1]).any()
    np.testing.assert_array_equal(feed.batch(5, 4)[0][:, 0], read.reshape(-1)[5:9])


def test_text_read_often_enough_is_written_on_by_the_teacher() -> None:
    dense, _ = pair()
    rng = np.random.default_rng(5)
    windows = rng.integers(0, dense.config.vocab_size, (5, 16)).astype(np.int32)
    feed = Feed(windows, 3, TeacherWriter(dense, threads=1))

    def epoch(index: int) -> list[list[int]]:
        return sorted(feed.batch(5 * index, 5)[0].tolist())

    text = sorted(windows.tolist())
    last = READINGS - 1
    assert all(epoch(index) == text for index in range(READINGS))
    assert feed.written(5 * READINGS) == 0
    assert feed.written(5 * READINGS + 2) == 32
    for first, second in ((last, last + 1), (last + 1, last + 2)):
        for old, new in zip(epoch(first), epoch(second), strict=True):
            assert old[:4] == new[:4]
            assert old[4:] != new[4:]
    again = Feed(windows, 3, TeacherWriter(dense, threads=1))
    place = 5 * READINGS
    np.testing.assert_array_equal(again.batch(place + 2, 2)[0], feed.batch(place, 5)[0][2:4])
    read, labels = feed.batch(place - 2, 4)
    np.testing.assert_array_equal(labels[:2, :-1], read[:2, 1:])
    assert (labels[:2, -1] == -1).all()
    assert (labels[2:] == -1).all()

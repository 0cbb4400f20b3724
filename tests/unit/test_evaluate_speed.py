"""Speed, memory and what counts as broken, on models of a few kilobytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import Checkpoint, save
from slimformer.config import AttentionConfig
from slimformer.engine import Engine
from slimformer.errors import ConfigError, SlimformerError
from slimformer.evaluate import (
    Contender,
    Times,
    find_collapses,
    logits_digest,
    measure_footprint,
    measure_speed,
    speed,
)
from slimformer.evaluate.collapse import repetition


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    config = random_config(np.random.default_rng(2), ragged=False, max_positions=64)
    return random_checkpoint(config, 2, tokenizer=True)


def test_models_take_turns(checkpoint: Checkpoint) -> None:
    engine = Engine(checkpoint, threads=1)
    seen: list[tuple[str, int, int]] = []
    first, second = measure_speed(
        [Contender("a", engine), Contender("b", engine)],
        prompt=8,
        generate=4,
        repeat=3,
        progress=lambda *told: seen.append(told),
    )
    assert seen == [(what, step, 8) for what in ("prefill", "decode") for step in range(1, 9)]
    assert (first.name, second.name) == ("a", "b")
    assert first.prefill_ratio == first.decode_ratio == 1
    for result in (first, second):
        for spread in (result.prefill, result.decode):
            assert 0 < spread.minimum <= spread.median <= spread.maximum
        assert result.prefill_gflops is not None
        assert result.prefill_gflops > 0
        assert result.decode_gb_per_s is not None
        assert result.decode_gb_per_s > 0


class Stopwatch:
    """Another engine, which takes a second a token."""

    name = "peer"
    max_positions = 64

    def run(self, prompt: int, generate: int) -> Times:
        return Times(float(prompt), float(generate))


def test_another_engine_takes_part(checkpoint: Checkpoint) -> None:
    ours = Contender("ours", Engine(checkpoint, threads=1))
    peer = measure_speed([ours, Stopwatch()], prompt=8, generate=4, repeat=1)[1]
    assert (peer.name, peer.prefill.median, peer.decode.median) == ("peer", 1.0, 1.0)
    assert 0 < peer.prefill_ratio < 1
    assert (peer.prefill_gflops, peer.decode_gb_per_s) == (None, None)
    with pytest.raises(ConfigError, match="peer: prompt 65"):
        measure_speed([Stopwatch()], prompt=65, generate=1)


def test_lengths_beyond_the_limit_are_refused(checkpoint: Checkpoint) -> None:
    contenders = [Contender("a", Engine(checkpoint, threads=1))]
    with pytest.raises(ConfigError, match="a: prompt 65"):
        measure_speed(contenders, prompt=65, generate=1)
    with pytest.raises(ConfigError, match="expected 64 at most"):
        measure_speed(contenders, prompt=8, generate=49)
    with pytest.raises(ConfigError, match="repeat"):
        measure_speed(contenders, repeat=0)


def test_operations_follow_the_parameters(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    one, two = (speed.prefill_flops(config, tokens) for tokens in (1, 2))
    head = 2.0 * config.vocab_size * config.n_channels
    attention = sum(
        4.0 * layer.attention.n_heads * layer.attention.head_dim
        for layer in config.layers
        if isinstance(layer.attention, AttentionConfig)
    )
    assert one == 2.0 * config.non_embedding_parameters() + head + attention
    # Three pairs of positions instead of one.
    assert two == 4.0 * config.non_embedding_parameters() + head + 3 * attention


def test_another_process_loads_the_same_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save(checkpoint, tmp_path / "model")
    footprint = measure_footprint(tmp_path / "model", weights="f32", threads=1)
    assert 0 < footprint.load_s <= footprint.first_token_s
    assert footprint.peak_memory_bytes > 1 << 20
    engine = Engine(checkpoint, weights="f32", threads=1)
    assert footprint.logits_sha256 == logits_digest(engine)


def test_a_load_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SlimformerError, match="missing"):
        measure_footprint(tmp_path / "missing.gguf")


def test_repetition_is_the_share_of_repeated_phrases() -> None:
    assert repetition("") == 0
    assert repetition("one two three four five") == 0
    assert repetition("again and " * 50) > 0.9


def test_a_collapse_is_called_one() -> None:
    dense = {"prose": 20.0, "drama": 30.0}
    assert find_collapses(dense, {"prose": 40.0, "drama": 60.0}, "a b", "a c") == []
    (worse,) = find_collapses(dense, {"prose": 61.0, "drama": 60.0}, "a b", "a c")
    assert "collapse" in worse
    assert "prose" in worse
    (broken,) = find_collapses(dense, {"prose": float("nan"), "drama": 60.0}, "a b", "a c")
    assert "prose" in broken
    (repeating,) = find_collapses(dense, dense, "all is well here and there", "on and " * 50)
    assert "repeats itself" in repeating

"""Sessions: what they refuse, and that a refusal changes nothing."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from reference.engines import random_case
from reference.models import random_checkpoint
from slimformer import _core
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.engine import Engine, Mask
from slimformer.errors import ConfigError, ContextLengthError, DataError, TokenError

VOCAB = 60


@pytest.fixture(scope="module")
def engine() -> Engine:
    attention = AttentionConfig(4, 2, 8, 8, (0, 0, 1, 1), 0.3, RopeConfig(8))
    layer = LayerConfig(attention, FfnConfig(20))
    config = ModelConfig("llama", VOCAB, 16, 16, 1e-5, True, 200, (layer, layer))
    return Engine(random_checkpoint(config, 1), weights="f32", threads=2)


def test_positions_count_tokens(engine: Engine) -> None:
    session = engine.session()
    assert (session.position, session.capacity, session.kv_bytes) == (0, 200, 0)
    session.extend([1, 2, 3])
    assert session.position == 3
    one_page = session.kv_bytes
    session.extend([5] * 126)
    assert (session.position, session.kv_bytes) == (129, 2 * one_page)
    session.rewind(128)
    assert session.kv_bytes == one_page
    session.rewind(0)
    assert (session.position, session.kv_bytes) == (0, 0)


def test_capacity_is_kept_and_nothing_changes(engine: Engine) -> None:
    session = engine.session(capacity=70)
    session.extend(range(50))
    expected = session.fork().extend([5])
    with pytest.raises(ContextLengthError, match="50 of at most 70"):
        session.extend(range(21))
    assert session.position == 50
    np.testing.assert_array_equal(session.extend([5]), expected)
    session.extend(range(19))
    assert session.position == session.capacity
    with pytest.raises(ContextLengthError):
        session.extend([1])


@pytest.mark.parametrize("capacity", [0, -1, 201])
def test_capacities_that_cannot_be(engine: Engine, capacity: int) -> None:
    with pytest.raises(ConfigError, match="capacity"):
        engine.session(capacity=capacity)


def test_one_bad_sequence_leaves_all_others_alone(engine: Engine) -> None:
    sessions = [engine.session(), engine.session(capacity=5)]
    engine.forward(sessions, [[1, 2], [3]])
    before = [session.fork() for session in sessions]
    with pytest.raises(ContextLengthError):
        engine.forward(sessions, [[4], [4] * 5])
    with pytest.raises(TokenError, match="60"):
        engine.forward(sessions, [[4], [VOCAB]])
    with pytest.raises(TokenError):
        engine.forward(sessions, [[-1], [4]])
    with pytest.raises(TokenError):
        engine.forward(sessions, [[1 << 40], [4]])
    with pytest.raises(DataError, match="no tokens"):
        engine.forward(sessions, [[4], []])
    with pytest.raises(DataError, match="twice"):
        engine.forward([sessions[0], sessions[0]], [[4], [4]])
    with pytest.raises(DataError):
        engine.forward(sessions, [[4]])
    with pytest.raises(DataError):
        engine.forward([], [])
    for session, fork in zip(sessions, before, strict=True):
        assert session.position == fork.position
        np.testing.assert_array_equal(session.extend([7]), fork.extend([7]))


def test_sessions_of_a_batch_belong_together(engine: Engine) -> None:
    other = random_case(1).engine()
    with pytest.raises(DataError, match="another model"):
        engine.forward([other.session()], [[1]])
    with pytest.raises(DataError, match="same mask"):
        engine.forward([engine.session(), engine.session(Mask(skip_ffn=(0,)))], [[1], [1]])
    with pytest.raises(DataError, match="KV type"):
        engine.forward([engine.session(), engine.session(kv="bf16")], [[1], [1]])
    mask = Mask(heads={0: (1,)})
    engine.forward([engine.session(mask), engine.session(mask)], [[1], [1]])


@pytest.mark.parametrize("position", [-1, 4, 1000])
def test_rewind_goes_back_only(engine: Engine, position: int) -> None:
    session = engine.session()
    session.extend([1, 2, 3])
    with pytest.raises(DataError, match="rewind"):
        session.rewind(position)
    assert session.position == 3


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Mask(skip_attention=(2,)), "layer 2 does not exist"),
        (Mask(skip_ffn=(-1,)), "layer -1 does not exist"),
        (Mask(skip_ffn=(1, 1)), "listed twice"),
        (Mask(exit_after=2), "layer 2 does not exist"),
        (Mask(heads={5: (0,)}), "layer 5 does not exist"),
        (Mask(heads={0: (4,)}), "head 4 does not exist"),
        (Mask(heads={0: (1, 1)}), "listed twice"),
        (Mask(heads={0: ()}), "keeps no head"),
        (Mask(neurons={1: (20,)}), "neuron 20 does not exist"),
        (Mask(neurons={1: ()}), "keeps no neuron"),
    ],
)
def test_masks_that_name_what_is_not_there(engine: Engine, mask: Mask, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.session(mask)


def test_a_plan_lists_what_runs(engine: Engine) -> None:
    def steps(**mask: object) -> list[str]:
        return _core.Plan(engine._packed, **mask).steps  # type: ignore[arg-type]

    assert steps() == [
        "layers.0.attention", "layers.0.ffn", "layers.1.attention", "layers.1.ffn"
    ]  # fmt: skip
    assert steps(skip_attention=[0], exit_after=0) == ["layers.0.ffn"]


def test_several_threads_run_sessions_of_one_engine(engine: Engine) -> None:
    prompts = [[i % VOCAB for i in range(start, start + 120)] for start in range(6)]
    expected = [engine.session().extend(prompt) for prompt in prompts]
    found: dict[int, list[np.ndarray]] = {}

    def work(index: int) -> None:
        found[index] = [engine.session().extend(prompts[index]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, rows in found.items():
        for row in rows:
            np.testing.assert_array_equal(row, expected[index])


def test_forks_may_be_used_from_several_threads(engine: Engine) -> None:
    parent = engine.session()
    parent.extend(range(40))
    expected = parent.fork().extend([3] * 50)
    children = [parent.fork() for _ in range(4)]
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda child=child: found.append(child.extend([3] * 50)))
        for child in children
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for row in found:
        np.testing.assert_array_equal(row, expected)


def test_one_session_in_two_threads_is_refused() -> None:
    attention = AttentionConfig(8, 8, 32, 32, tuple(range(8)), 0.2, RopeConfig(32))
    layer = LayerConfig(attention, FfnConfig(1000))
    config = ModelConfig("llama", VOCAB, 256, 256, 1e-5, True, 2000, (layer,) * 4)
    big = Engine(random_checkpoint(config, 1), weights="f32", threads=1)
    session = big.session()
    thread = threading.Thread(target=session.extend, args=([1] * 1900,))
    thread.start()

    def poke() -> None:
        while thread.is_alive():
            time.sleep(0.001)
            session.rewind(0)

    with pytest.raises(DataError, match="already in use"):
        poke()
    thread.join()
    assert session.position == 1900

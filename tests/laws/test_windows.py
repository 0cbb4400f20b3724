"""Sliding windows with attention sinks: what is seen, at which distance, in how much memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.engines import TIERS, TOLERANCE, Case, difference, random_case, seeds
from reference.models import random_checkpoint
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.engine import Engine
from slimformer.errors import ConfigError, DataError

VOCAB = 60
LIMIT = 400
WIDE = 10**9
"""A window that no sequence leaves would be this wide, if the model's limit allowed it."""

windows = st.integers(1, 200)
sinks = st.integers(0, 140)


def small_model(n_layers: int, *, window: int | None = None) -> Case:
    """Layers with rotary positions, two KV heads and, if asked for, a window of their own."""
    attention = AttentionConfig(4, 2, 8, 8, (0, 0, 1, 1), 0.3, RopeConfig(8), window=window)
    layer = LayerConfig(attention, FfnConfig(20))
    config = ModelConfig("llama", VOCAB, 16, 16, 1e-5, True, LIMIT, (layer,) * n_layers)
    rng = np.random.default_rng(3)
    return Case(random_checkpoint(config, 1), rng.integers(0, VOCAB, 700), rng)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(("window", "n_sinks"), [(1, 0), (30, 4), (128, 130), (200, 0), (37, 1)])
def test_one_layer_sees_what_a_sequence_of_nothing_else_would(
    tier: str, window: int, n_sinks: int
) -> None:
    """With one layer, keys and values are of their own token alone, and only distances count."""
    case = small_model(1)
    engine = case.engine(tier=tier)
    session = engine.session(window=window, sinks=n_sinks)
    found = engine.forward([session], [case.tokens], logits="all")
    for position in (0, window - 1, window + n_sinks, 300, 512, 699):
        past = case.tokens[: position + 1]
        seen = past
        if len(past) > window + n_sinks:
            seen = np.concatenate([past[:n_sinks], past[len(past) - window :]])
        assert difference(found[position], engine.session().extend(seen)) < TOLERANCE


@given(seed=seeds, window=windows, n_sinks=sinks)
def test_a_window_that_is_not_left_changes_no_bit(seed: int, window: int, n_sinks: int) -> None:
    case = random_case(seed, max_tokens=window + n_sinks, max_positions=600)
    engine = case.engine()
    windowed = engine.session(window=window, sinks=n_sinks)
    np.testing.assert_array_equal(
        windowed.extend(case.tokens), engine.session().extend(case.tokens)
    )
    assert windowed.out_of_sight == 0


@given(seed=seeds, window=windows, n_sinks=sinks, kv=st.sampled_from(["f32", "bf16"]))
def test_prefill_equals_decode(seed: int, window: int, n_sinks: int, kv: str) -> None:
    case = random_case(seed, max_tokens=300, max_positions=600)
    engine = case.engine(kv=kv, window=window, sinks=n_sinks)
    whole = engine.forward([engine.session()], [case.tokens], logits="all")
    session = engine.session()
    one_by_one = np.stack([session.extend([token]) for token in case.tokens])
    assert difference(one_by_one, whole) < TOLERANCE


@given(seed=seeds, n_sinks=sinks)
def test_a_batch_of_different_windows_equals_its_sequences(seed: int, n_sinks: int) -> None:
    case = random_case(seed, max_positions=600)
    engine = case.engine()
    prompts = [case.rng.integers(0, engine.config.vocab_size, n) for n in (250, 3, 170)]

    def sessions() -> list[object]:
        return [engine.session(window=w, sinks=n_sinks) for w in (20, None, 130)]

    together = engine.forward(sessions(), prompts, logits="all")  # type: ignore[arg-type]
    alone = [
        engine.forward([session], [prompt], logits="all")  # type: ignore[list-item]
        for session, prompt in zip(sessions(), prompts, strict=True)
    ]
    assert difference(together, np.concatenate(alone)) < TOLERANCE


@given(seed=seeds, window=windows, n_sinks=sinks, kv=st.sampled_from(["f32", "int8"]))
def test_any_threads_and_any_fork_give_the_same_bits(
    seed: int, window: int, n_sinks: int, kv: str
) -> None:
    case = random_case(seed, max_tokens=300, max_positions=600)
    answers = []
    for threads in (1, 2, 3):
        session = case.engine(threads=threads, kv=kv).session(window=window, sinks=n_sinks)
        first = session.extend(case.tokens)
        fork = session.fork()
        answers.append((first, session.extend([1, 2]), fork.extend([1, 2])))
        np.testing.assert_array_equal(answers[-1][1], answers[-1][2])
    for other in answers[1:]:
        for found, expected in zip(other, answers[0], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_memory_stays_as_it_is_beyond_the_limit_of_the_model() -> None:
    engine = small_model(2).engine(window=150, sinks=4)
    session = engine.session()
    assert session.capacity == 1 << 24
    tokens = np.arange(5000) % VOCAB
    sizes = []
    for start in range(0, len(tokens), 50):
        session.extend(tokens[start : start + 50])
        sizes.append(session.kv_bytes)
    page = engine.session(window=150)
    page.extend([1])
    # The sinks' page, and the pages of 150 positions or of 149 and the next.
    assert max(sizes) <= 4 * page.kv_bytes
    assert session.position == 5000 > engine.config.max_positions
    assert session.out_of_sight == 5000 - 150 - 4


def test_a_narrower_window_of_the_model_stays_without_sinks() -> None:
    case = small_model(2, window=40)
    engine = case.engine()
    tokens = case.tokens[:390]
    windowed = engine.session(window=100, sinks=4)
    for start in range(0, 390, 30):
        found = windowed.extend(tokens[start : start + 30])
    assert difference(found, engine.session().extend(tokens)) < TOLERANCE
    plain = engine.session()
    plain.extend(tokens)
    assert windowed.kv_bytes < plain.kv_bytes


def test_rewinding_goes_as_far_as_there_is_something_to_see() -> None:
    case = small_model(2)
    engine = case.engine()
    session = engine.session(window=100, sinks=4)
    session.extend(case.tokens[:600])
    with pytest.raises(DataError, match="left the session's window"):
        session.rewind(300)
    assert session.position == 600
    session.rewind(597)
    again = engine.session(window=100, sinks=4)
    again.extend(case.tokens[:597])
    assert difference(session.extend([7, 8]), again.extend([7, 8])) < TOLERANCE
    session.rewind(100)  # the page of the sinks holds all of it
    again = engine.session(window=100, sinks=4)
    again.extend(case.tokens[:100])
    assert difference(session.extend([7, 8]), again.extend([7, 8])) < TOLERANCE
    session.rewind(0)
    assert session.kv_bytes == 0


@pytest.mark.parametrize(
    ("window", "n_sinks", "message"),
    [(0, 4, "window"), (LIMIT, 4, "found 400"), (WIDE, 0, "window"), (10, -1, "sinks")],
)
def test_windows_that_cannot_be(window: int, n_sinks: int, message: str) -> None:
    case = small_model(1)
    with pytest.raises(ConfigError, match=message):
        case.engine(window=window, sinks=n_sinks)
    with pytest.raises(ConfigError, match=message):
        case.engine().session(window=window, sinks=n_sinks)


def test_long_prompts_are_generated_from_in_little_memory() -> None:
    case = small_model(2)
    engine = Engine(case.checkpoint, weights="f32", kv="f32", window=100, sinks=4)
    prompt = np.tile(case.tokens, 3).tolist()
    session = engine.session()
    for start in range(0, len(prompt), 512):
        logits = session.extend(prompt[start : start + 512])
    written = engine.generate_ids(prompt, max_tokens=3)
    assert written[0] == int(logits.argmax())

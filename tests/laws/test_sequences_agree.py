"""Law 3: prefill equals decode, a batch its sequences, a fork a recomputation, any threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.engines import TIERS, TOLERANCE, difference, random_case, seeds
from slimformer.engine import Engine, Mask


@given(seed=seeds, kv=st.sampled_from(["f32", "bf16"]))
def test_prefill_equals_decode(seed: int, kv: str) -> None:
    case = random_case(seed, max_tokens=140)
    engine = case.engine(kv=kv)
    whole = engine.forward([engine.session()], [case.tokens], logits="all")
    session = engine.session()
    one_by_one = np.stack([session.extend([token]) for token in case.tokens])
    assert difference(one_by_one, whole) < TOLERANCE


@given(seed=seeds)
def test_batch_equals_its_sequences(seed: int) -> None:
    case = random_case(seed)
    engine = case.engine()
    lengths = case.rng.integers(1, 100, size=int(case.rng.integers(1, 6)))
    prompts = [case.rng.integers(0, engine.config.vocab_size, n) for n in lengths]
    sessions = [engine.session() for _ in prompts]
    together = engine.forward(sessions, prompts, logits="all")
    alone = [engine.forward([engine.session()], [p], logits="all") for p in prompts]
    assert difference(together, np.concatenate(alone)) < TOLERANCE
    last = engine.forward([engine.session() for _ in prompts], prompts)
    assert difference(last, np.stack([rows[-1] for rows in alone])) < TOLERANCE
    # What each of them knows afterwards is its own past.
    following = engine.forward(sessions, [[1]] * len(sessions))
    for row, prompt in zip(following, prompts, strict=True):
        session = engine.session()
        session.extend(prompt)
        assert difference(row, session.extend([1])) < TOLERANCE


def test_scores_of_many_sequences_are_those_of_each() -> None:
    case = random_case(19, max_tokens=1, max_positions=3000)
    engine = case.engine()
    sequences = [case.rng.integers(0, 300, n) for n in (2500, 1, 2000, 30, 2)]
    together = engine.score(sequences)
    assert [len(scores) for scores in together] == [2499, 0, 1999, 29, 1]
    for scores, sequence in zip(together, sequences, strict=True):
        assert difference(scores, engine.score([sequence])[0]) < TOLERANCE
    assert engine.score([]) == []


@pytest.mark.parametrize("tier", TIERS)
@given(seed=seeds, weights=st.sampled_from(["f32", "bf16", "int8", "int4"]))
def test_any_number_of_threads_gives_the_same_bits(tier: str, seed: int, weights: str) -> None:
    case = random_case(seed)
    answers = []
    for threads in (1, 2, 3):
        engine = case.engine(weights=weights, tier=tier, threads=threads)
        session = engine.session()
        rows = engine.forward([session], [case.tokens], logits="all")
        answers.append((rows, session.extend([1]), engine.score([case.tokens])[0]))
    for other in answers[1:]:
        for found, expected in zip(other, answers[0], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_threads_agree_on_a_model_that_fills_many_tiles() -> None:
    case = random_case(5, max_tokens=3, max_layers=2, max_positions=4096)
    tokens = case.rng.integers(0, 300, 1500)
    answers = []
    for threads in (1, 2, 3):
        session = case.engine(threads=threads).session()
        session.extend(tokens)
        answers.append(session.extend([1]))  # reads a context that is cut into ranges of pages
    np.testing.assert_array_equal(answers[1], answers[0])
    np.testing.assert_array_equal(answers[2], answers[0])


@given(seed=seeds, position=st.integers(1, 150))
def test_fork_equals_recomputation(seed: int, position: int) -> None:
    case = random_case(seed)
    engine = case.engine()
    prefix = case.rng.integers(0, engine.config.vocab_size, position)
    parent = engine.session()
    parent.extend(prefix)
    children = [parent.fork(), parent.fork()]
    suffixes = [case.rng.integers(0, engine.config.vocab_size, 70) for _ in children]
    for child, suffix in zip(children, suffixes, strict=True):
        again = engine.session()
        again.extend(prefix)
        np.testing.assert_array_equal(child.extend(suffix), again.extend(suffix))
    # The parent has not noticed.
    again = engine.session()
    again.extend(prefix)
    np.testing.assert_array_equal(parent.extend([2]), again.extend([2]))


@given(seed=seeds, kv=st.sampled_from(["f32", "bf16"]), data=st.data())
def test_rewind_equals_recomputation(seed: int, kv: str, data: st.DataObject) -> None:
    case = random_case(seed, max_tokens=200)
    engine = case.engine(kv=kv)
    session = engine.session()
    session.extend(case.tokens)
    position = data.draw(st.integers(0, len(case.tokens)))
    other = session.fork()
    session.rewind(position)
    assert session.position == position
    again = engine.session()
    if position > 0:
        again.extend(case.tokens[:position])
    assert difference(session.extend([7, 8]), again.extend([7, 8])) < TOLERANCE
    assert other.position == len(case.tokens)


@pytest.mark.parametrize("length", [63, 64, 65, 127, 128, 129, 511, 512, 513])
def test_borders_of_pages_and_chunks(length: int) -> None:
    case = random_case(11, max_tokens=1, max_positions=600)
    tokens = case.rng.integers(0, 300, length + 1)
    engine = case.engine()
    whole = engine.forward([engine.session()], [tokens], logits="all")
    session = engine.session()
    assert difference(session.extend(tokens[:-1]), whole[-2]) < TOLERANCE
    assert difference(session.extend(tokens[-1:]), whole[-1]) < TOLERANCE


def test_bf16_keys_and_values_are_close() -> None:
    case = random_case(13, max_tokens=1)
    tokens = case.rng.integers(0, 300, 200)
    engine = case.engine()
    full, half = engine.session(), engine.session(kv="bf16")
    # Keys and values are off by up to 2^-9 of their size.
    assert difference(half.extend(tokens), full.extend(tokens)) < 0.05
    if full.kv_bytes:
        assert half.kv_bytes * 2 == full.kv_bytes


def test_int8_keys_and_values_are_close() -> None:
    case = random_case(13, max_tokens=1)
    tokens = case.rng.integers(0, 300, 200)
    engine = case.engine()
    full, whole = engine.session(), engine.session(kv="int8")
    # Keys and values are off by up to 2^-8 of the largest of their head.
    assert difference(whole.extend(tokens), full.extend(tokens)) < 0.1
    if full.kv_bytes:
        assert whole.kv_bytes * 2 < full.kv_bytes


@pytest.mark.parametrize("tier", TIERS)
def test_int8_keys_and_values_obey_the_laws(tier: str) -> None:
    case = random_case(11, max_tokens=1, max_positions=600)
    tokens = case.rng.integers(0, 300, 300)
    answers = []
    for threads in (1, 3):
        engine = case.engine(tier=tier, threads=threads, kv="int8")
        session = engine.session()
        answers.append(engine.forward([session], [tokens], logits="all"))
        fork = session.fork()
        answers.append(fork.extend([4, 5]))
        np.testing.assert_array_equal(session.extend([4, 5]), answers[-1])
        # A value on the border between two whole numbers may fall to either side.
        fork.rewind(200)
        one_by_one = np.stack([fork.extend([token]) for token in tokens[200:]])
        assert difference(one_by_one, answers[-2][200:]) < 0.1
    np.testing.assert_array_equal(answers[2], answers[0])
    np.testing.assert_array_equal(answers[3], answers[1])


def test_skipped_attention_has_no_memory() -> None:
    case = random_case(17, max_tokens=1, ragged=False)
    engine: Engine = case.engine()
    n_layers = len(engine.config.layers)
    dense = engine.session()
    slim = engine.session(Mask.skip_layers(range(1, n_layers)))
    none = engine.session(Mask.skip_layers(range(n_layers)))
    for session in (dense, slim, none):
        session.extend([1, 2, 3])
    assert slim.kv_bytes * n_layers == dense.kv_bytes > 0
    assert none.kv_bytes == 0

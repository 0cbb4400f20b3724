"""Running ranges of layers, and what the taps see, against the numpy reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from reference.engines import TOLERANCE, Case, difference, random_case, seeds
from reference.forward import ReferenceMask, forward
from slimformer.engine import Engine, Mask, Moments
from slimformer.errors import ConfigError, ContextLengthError, DataError


def captured_by_reference(
    case: Case, tokens: np.ndarray, mask: ReferenceMask | None = None
) -> dict[tuple[int, str], np.ndarray]:
    captured: dict[tuple[int, str], Any] = {}
    checkpoint = case.checkpoint
    forward(checkpoint.config, checkpoint.read_f32, tokens.tolist(), mask, captured=captured)
    return captured


@given(seed=seeds)
def test_every_tap_sees_what_the_reference_sees(seed: int) -> None:
    case = random_case(seed, max_tokens=60)
    engine = case.engine()
    n_layers = len(engine.config.layers)
    sequences = [case.tokens, case.rng.integers(0, engine.config.vocab_size, 9)]
    references = [captured_by_reference(case, tokens) for tokens in sequences]
    expected = {
        key: np.concatenate([reference[key] for reference in references]) for key in references[0]
    }
    lengths = [len(tokens) for tokens in sequences]
    hidden = engine.embed(np.concatenate(sequences), lengths)
    moments = {key: Moments(value.shape[1]) for key, value in expected.items()}
    output, captured = engine.run_layers(
        hidden,
        lengths,
        first=0,
        last=n_layers,
        moments=moments,
        capture=list(expected),
    )
    assert captured.keys() == expected.keys()
    for key, value in expected.items():
        assert difference(captured[key], value) < TOLERANCE, key
        assert moments[key].count == len(hidden)
        assert difference(moments[key].gram, value.T @ value) < TOLERANCE, key
    if n_layers:
        np.testing.assert_array_equal(output, captured[n_layers - 1, "layer_output"])
    logits = engine.logits(output)
    whole = engine.forward([engine.session() for _ in sequences], sequences, logits="all")
    np.testing.assert_array_equal(logits, whole)


@given(seed=seeds)
def test_layers_one_by_one_are_the_model(seed: int) -> None:
    case = random_case(seed, max_tokens=60, max_layers=5)
    engine = case.engine()
    lengths = [len(case.tokens)]
    hidden = engine.embed(case.tokens)
    for index in range(len(engine.config.layers)):
        hidden, _ = engine.run_layers(hidden, lengths, first=index, last=index + 1)
    scores = engine.score_hidden(hidden[:-1], case.tokens[1:])
    assert difference(scores, engine.score([case.tokens])[0]) < TOLERANCE


def test_long_sequences_are_cut_and_stay_whole() -> None:
    case = random_case(4, max_positions=2000)
    engine = case.engine()
    lengths = [700, 3, 600, 1, 500]
    tokens = case.rng.integers(0, 300, sum(lengths))
    n_layers = len(engine.config.layers)
    output, captured = engine.run_layers(
        engine.embed(tokens, lengths),
        lengths,
        first=0,
        last=n_layers,
        capture=[(0, "attention_input")],
    )
    np.testing.assert_array_equal(captured[0, "attention_input"], engine.embed(tokens, lengths))
    start = 0
    for length in lengths:
        piece = tokens[start : start + length]
        alone, _ = engine.run_layers(engine.embed(piece), [length], first=0, last=n_layers)
        assert difference(output[start : start + length], alone) < TOLERANCE
        start += length


def test_masks_apply() -> None:
    case = random_case(6, ragged=False, max_layers=3)
    engine = case.engine()
    n_layers = len(engine.config.layers)
    mask = Mask(skip_attention=(0,), neurons={0: (0,)})
    _, captured = engine.run_layers(
        engine.embed(case.tokens),
        [len(case.tokens)],
        first=0,
        last=n_layers,
        mask=mask,
        capture=[(0, "ffn_neurons"), (0, "layer_output")],
    )
    reference = captured_by_reference(
        case, case.tokens, ReferenceMask(skip_attention=(0,), neurons={0: (0,)})
    )
    for key, value in captured.items():
        assert difference(value, reference[key]) < TOLERANCE
    assert not captured[0, "ffn_neurons"][:, 1:].any()
    with pytest.raises(ConfigError, match="does not pass the tap"):
        engine.run_layers(
            engine.embed([1]), [1], first=0, last=1, mask=mask, capture=[(0, "attention_heads")]
        )


@pytest.fixture(scope="module")
def engine() -> Engine:
    return random_case(7, ragged=False, max_positions=30, max_layers=2).engine()


def test_arguments_that_do_not_fit(engine: Engine) -> None:
    hidden = engine.embed([1, 2, 3])
    width = engine.config.n_channels

    def run(**changes: Any) -> None:
        arguments = {"hidden": hidden, "lengths": [3], "first": 0, "last": 1, **changes}
        engine.run_layers(**arguments)

    run()
    for lengths in ([2], [4], [3, 0], [-3, 6], []):
        with pytest.raises(DataError, match="lengths"):
            run(lengths=lengths)
    for bad in (hidden[:, :-1], hidden.astype(np.float64), hidden[0], hidden[:, ::-1]):
        with pytest.raises(DataError, match="hidden"):
            run(hidden=bad)
    with pytest.raises(ContextLengthError):
        run(hidden=np.zeros((31, width), dtype=np.float32), lengths=[31])
    with pytest.raises(ConfigError, match="layers"):
        run(last=len(engine.config.layers) + 1)
    with pytest.raises(ConfigError, match="no tap site"):
        run(capture=[(0, "elsewhere")])
    with pytest.raises(ConfigError, match="does not pass"):
        run(capture=[(9, "layer_output")])
    with pytest.raises(DataError, match="expected width"):
        run(moments={(0, "layer_output"): Moments(width + 1)})
    with pytest.raises(DataError, match="no targets"):
        run(moments={(0, "layer_output"): Moments(width, target_width=2)})


def test_hidden_states_and_targets_must_match(engine: Engine) -> None:
    hidden = engine.embed([1, 2])
    with pytest.raises(DataError, match="targets"):
        engine.score_hidden(hidden, [1])
    with pytest.raises(IndexError):
        engine.score_hidden(hidden, [1, engine.config.vocab_size])
    with pytest.raises(IndexError):
        engine.embed([engine.config.vocab_size])
    assert engine.logits(np.empty((0, hidden.shape[1]), dtype=np.float32)).shape[0] == 0
    assert engine.embed([]).shape == (0, hidden.shape[1])

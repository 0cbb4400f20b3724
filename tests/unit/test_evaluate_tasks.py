"""Answers to tasks against the plain numpy model, one full sequence a continuation."""

from __future__ import annotations

import math
import string

import numpy as np
import pytest

from reference.forward import forward
from reference.models import random_checkpoint, random_config
from slimformer.checkpoint import Checkpoint
from slimformer.engine import Engine, Mask
from slimformer.errors import ConfigError, DataError
from slimformer.evaluate import Item, Task, branches, evaluate_task, tasks

LIMIT = 48


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    config = random_config(np.random.default_rng(11), ragged=False, max_positions=LIMIT)
    return random_checkpoint(config, 11, tokenizer=True)


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint) -> Engine:
    return Engine(checkpoint, weights="f32", threads=1)


CHOICES = Task(
    "choices",
    (
        *(
            Item(tuple((context, choice) for choice in choices), gold)
            for context, choices, gold in (
                ("the river of stone", (" and light", " to the engine", " in"), 0),
                ("to", (" the", " of layer upon layer"), 1),
                ("", (" light", "stone"), 0),
                ("the engine ", ("and", "of the river"), 1),
                ("and in the light", (" x", " yz", " the stone"), 2),
            )
        ),
        Item((("the river", " of light"), ("the stone", " of light")), 1),
    ),
)


def reference_scores(checkpoint: Checkpoint, item: Item) -> list[tuple[float, bool]]:
    """Log likelihood and greediness of each pair, with nothing shared."""
    engine = Engine(checkpoint, weights="f32", threads=1)
    assert engine.tokenizer is not None
    scores = []
    for context, continuation in item.pairs:
        before, after = tasks.encode_pair(engine.tokenizer, context, continuation)
        ids = (before or [0]) + after
        rows = forward(checkpoint.config, checkpoint.read_f32, ids)[-len(after) - 1 : -1]
        log_likelihood = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        total = float(log_likelihood[np.arange(len(after)), after].sum())
        scores.append((total, bool((rows.argmax(axis=1) == after).all())))
    return scores


@pytest.mark.parametrize("batch_tokens", [1, 7, 2048])
def test_choices_are_those_of_the_reference(
    checkpoint: Checkpoint,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    batch_tokens: int,
) -> None:
    monkeypatch.setattr(branches, "BATCH_TOKENS", batch_tokens)
    right = right_norm = 0
    nats = 0.0
    for item in CHOICES.items:
        totals = [total for total, _ in reference_scores(checkpoint, item)]
        by_byte = [
            total / len(text.strip().encode())
            for total, (_, text) in zip(totals, item.pairs, strict=True)
        ]
        assert item.gold is not None
        right += int(np.argmax(totals)) == item.gold
        right_norm += int(np.argmax(by_byte)) == item.gold
        nats -= totals[item.gold]
    result = evaluate_task(engine, CHOICES)
    count = len(CHOICES.items)
    assert result.items == count
    assert result.accuracy == right / count
    assert result.accuracy_norm == right_norm / count
    # Sums of a few float32 log likelihoods.
    assert result.target_perplexity == pytest.approx(math.exp(nats / count), rel=1e-4)
    error = math.sqrt(result.accuracy * (1 - result.accuracy) / (count - 1))
    assert result.standard_error == pytest.approx(error)


def test_a_last_word_is_right_when_greedy_decoding_writes_it(engine: Engine) -> None:
    assert engine.tokenizer is not None
    for letter in string.ascii_letters:
        context = f"the river of stone {letter}"
        ids = engine.generate_ids(engine.tokenizer.encode(context), max_tokens=1)
        word = engine.tokenizer.decode(ids)
        if word and tasks.encode_pair(engine.tokenizer, context, word)[1] == ids:
            break
    else:
        pytest.fail("no context makes the model write a token that is a text of its own")
    likely = Item(((context, word),), None)
    unlikely = Item(((context, " zzz"),), None)
    result = evaluate_task(engine, Task("words", (likely, unlikely)))
    assert result.accuracy == 0.5
    assert result.accuracy_norm is None


def test_white_space_belongs_to_the_continuation(engine: Engine) -> None:
    assert engine.tokenizer is not None
    spaced = tasks.encode_pair(engine.tokenizer, "the river ", "of stone")
    plain = tasks.encode_pair(engine.tokenizer, "the river", " of stone")
    assert spaced == plain
    assert engine.tokenizer.decode(spaced[0] + spaced[1]) == "the river of stone"


def test_a_long_context_loses_its_beginning(engine: Engine) -> None:
    long = Item((("z" * 100 + " the river", " of"), ("z" * 100 + " the river", " light")), 0)
    assert evaluate_task(engine, Task("long", (long,))).items == 1
    endless = Item((("the", " " + "z" * 100), ("the", " of")), 0)
    with pytest.raises(DataError, match=f"limit of {LIMIT}"):
        evaluate_task(engine, Task("endless", (endless,)))


def test_max_items_and_single_items(engine: Engine) -> None:
    result = evaluate_task(engine, CHOICES, max_items=1)
    assert result.items == 1
    assert result.standard_error is None
    with pytest.raises(ConfigError, match="max_items"):
        evaluate_task(engine, CHOICES, max_items=0)


def test_a_mask_counts(engine: Engine) -> None:
    masked = evaluate_task(engine, CHOICES, mask=Mask(exit_after=0, skip_ffn=(0,)))
    assert masked.target_perplexity != evaluate_task(engine, CHOICES).target_perplexity

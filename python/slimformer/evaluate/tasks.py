"""Multiple choice and last-word prediction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slimformer.errors import ConfigError, DataError
from slimformer.evaluate.task_files import Item, Task
from slimformer.progress import Progress, silent

if TYPE_CHECKING:
    from slimformer.engine import Engine, Mask, Session
    from slimformer.tokenizer import Tokenizer

BATCH_TOKENS = 2048
"""Tokens of contexts that run in one pass."""

BATCH_ROWS = 256
"""Rows of logits held at once: 50 MB with 49,152 float32 entries each."""


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """How many items a model got right.

    ``accuracy`` takes the likeliest continuation; ``accuracy_norm`` divides log likelihoods by
    the bytes of the continuation first, and is ``None`` for last-word prediction, where an
    item is right when greedy decoding produces the word. ``target_perplexity`` is that of the
    right continuations as wholes. The standard errors are those of a mean of independent
    items, ``None`` for a single one.
    """

    items: int
    accuracy: float
    standard_error: float | None
    accuracy_norm: float | None
    standard_error_norm: float | None
    target_perplexity: float


@dataclasses.dataclass(frozen=True)
class _Score:
    """One continuation: its log likelihood, and whether greedy decoding produces it."""

    log_likelihood: float
    is_greedy: bool


def evaluate_task(
    engine: Engine,
    task: Task,
    *,
    max_items: int | None = None,
    mask: Mask | None = None,
    progress: Progress = silent,
) -> TaskResult:
    """Answer the items of a task.

    Each context is computed once and forked for its continuations; items run in ragged
    batches. A context too long for the model loses its beginning.

    Parameters
    ----------
    engine
        A model with a tokenizer.
    task
        What to answer.
    max_items
        Answer only so many items, from the first.
    mask
        Run with parts of the model switched off.
    progress
        Told after every batch of items.

    Raises
    ------
    DataError
        A continuation alone exceeds the model's limit.
    ConfigError
        ``max_items`` is below 1, or there is no tokenizer.
    """
    if max_items is not None and max_items < 1:
        raise ConfigError(f"max_items: expected 1 at least, found {max_items}")
    if engine.tokenizer is None:
        raise ConfigError("the model has no tokenizer, so no task can be evaluated")
    items = task.items[:max_items]
    right: list[bool] = []
    right_norm: list[bool] = []
    target_nats = 0.0
    prepared = [_prepare(engine, engine.tokenizer, item) for item in items]
    for batch in _batches(prepared):
        for scores in _score(engine, batch, mask):
            item = items[len(right)]
            totals = np.array([score.log_likelihood for score in scores])
            if item.gold is None:
                right.append(scores[0].is_greedy)
                target_nats -= totals[0]
                continue
            lengths = np.array([len(text.strip().encode()) for _, text in item.pairs])
            right.append(int(totals.argmax()) == item.gold)
            right_norm.append(int((totals / lengths).argmax()) == item.gold)
            target_nats -= totals[item.gold]
        progress(task.name, len(right), len(items))
    mean_nats = target_nats / len(items)
    return TaskResult(
        items=len(items),
        accuracy=float(np.mean(right)),
        standard_error=_standard_error(right),
        accuracy_norm=float(np.mean(right_norm)) if right_norm else None,
        standard_error_norm=_standard_error(right_norm) if right_norm else None,
        target_perplexity=math.exp(mean_nats) if mean_nats < 700 else math.inf,
    )


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Token ids of a context and of what follows it, as lm-evaluation-harness has them.

    White space at the end of the context belongs to the continuation. Both are encoded as one
    text, which is split at the number of tokens that the context has alone. A continuation
    that merges into the context's last token as a whole is encoded alone.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    context_ids = tokenizer.encode(stripped)
    continuation_ids = tokenizer.encode(stripped + continuation)[len(context_ids) :]
    return context_ids, continuation_ids or tokenizer.encode(continuation, add_bos=False)


@dataclasses.dataclass(frozen=True)
class _Branch:
    """A context but for its last token, and the texts that go on from there.

    Each continuation starts with the context's last token, so that its first own token is
    predicted by the continuation's first row.
    """

    context: list[int]
    continuations: list[list[int]]

    @property
    def rows(self) -> int:
        return sum(len(ids) - 1 for ids in self.continuations)


def _prepare(engine: Engine, tokenizer: Tokenizer, item: Item) -> list[_Branch]:
    """One branch for every different context of the item, in the order of its pairs."""
    limit = engine.config.max_positions
    branches: list[_Branch] = []
    for (context, _), pairs in _grouped(item.pairs):
        encoded = [encode_pair(tokenizer, context, text) for _, text in pairs]
        context_ids = encoded[0][0] or [_first_token(tokenizer)]
        longest = max(len(ids) for _, ids in encoded)
        if longest > limit:
            raise DataError(
                f"a continuation of {longest} tokens exceeds the model's limit of {limit}"
            )
        context_ids = context_ids[-(limit - longest + 1) :]
        branches.append(_Branch(context_ids[:-1], [[context_ids[-1], *ids] for _, ids in encoded]))
    return branches


def _grouped(
    pairs: Sequence[tuple[str, str]],
) -> Iterator[tuple[tuple[str, str], list[tuple[str, str]]]]:
    """Runs of pairs with the same context."""
    start = 0
    for end in range(1, len(pairs) + 1):
        if end == len(pairs) or pairs[end][0] != pairs[start][0]:
            yield pairs[start], list(pairs[start:end])
            start = end


def _first_token(tokenizer: Tokenizer) -> int:
    """What stands in for an empty context."""
    for token in (tokenizer.bos_id, tokenizer.eos_id):
        if token is not None:
            return token
    raise DataError("an empty context needs a model with a beginning or end token")


def _batches(prepared: Sequence[list[_Branch]]) -> Iterator[list[list[_Branch]]]:
    """Runs of items within the limits of one pass, one item at least."""
    batch: list[list[_Branch]] = []
    tokens = rows = 0
    for branches in prepared:
        more_tokens = sum(len(branch.context) for branch in branches)
        more_rows = sum(branch.rows for branch in branches)
        if batch and (tokens + more_tokens > BATCH_TOKENS or rows + more_rows > BATCH_ROWS):
            yield batch
            batch, tokens, rows = [], 0, 0
        batch.append(branches)
        tokens += more_tokens
        rows += more_rows
    if batch:
        yield batch


def _score(
    engine: Engine, batch: Sequence[list[_Branch]], mask: Mask | None
) -> Iterator[list[_Score]]:
    """Scores of every item's continuations, in the order of its pairs."""
    branches = [branch for item in batch for branch in item]
    trunks = [_trunk(engine, branch, mask) for branch in branches]
    started = [index for index, branch in enumerate(branches) if branch.context]
    if started:
        engine.forward(
            [trunks[index] for index in started],
            [branches[index].context for index in started],
            logits="none",
        )
    forks = [
        trunk.fork()
        for trunk, branch in zip(trunks, branches, strict=True)
        for _ in branch.continuations
    ]
    texts = [ids for branch in branches for ids in branch.continuations]
    logits = engine.forward(forks, [ids[:-1] for ids in texts], logits="all")
    scores: list[_Score] = []
    row = 0
    for ids in texts:
        scores.append(_score_rows(logits[row : row + len(ids) - 1], ids[1:]))
        row += len(ids) - 1
    position = 0
    for item in batch:
        count = sum(len(branch.continuations) for branch in item)
        yield scores[position : position + count]
        position += count


def _trunk(engine: Engine, branch: _Branch, mask: Mask | None) -> Session:
    longest = max(len(ids) - 1 for ids in branch.continuations)
    return engine.session(mask, capacity=len(branch.context) + longest)


def _score_rows(logits: npt.NDArray[np.float32], targets: Sequence[int]) -> _Score:
    """``logits`` is [targets, vocabulary]."""
    top = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=1, dtype=np.float64))
    chosen = logits[np.arange(len(targets)), targets] - top[:, 0]
    return _Score(
        log_likelihood=float((chosen - log_sum).sum()),
        is_greedy=bool((logits.argmax(axis=1) == np.asarray(targets)).all()),
    )


def _standard_error(right: Sequence[bool]) -> float | None:
    if len(right) < 2:
        return None
    return float(np.std(right, ddof=1) / math.sqrt(len(right)))

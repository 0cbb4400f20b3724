"""Multiple choice and last-word prediction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from slimformer.errors import ConfigError, DataError
from slimformer.evaluate.branches import Branch, score_branches
from slimformer.evaluate.task_files import Item, Task
from slimformer.progress import Progress, silent

if TYPE_CHECKING:
    from slimformer.engine import Engine, Mask
    from slimformer.tokenizer import Tokenizer


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


def evaluate_task(
    engine: Engine,
    task: Task,
    *,
    max_items: int | None = None,
    mask: Mask | None = None,
    progress: Progress = silent,
) -> TaskResult:
    """Answer the items of a task.

    What contexts have in common is computed once, and so is each context; all run in ragged
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
        Told after every batch of contexts.

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
    branches = [branch for of_item in prepared for branch in of_item]
    found = iter(
        score_branches(
            engine,
            branches,
            mask=mask,
            done=lambda count: progress(task.name, count, len(branches)),
        )
    )
    for item, of_item in zip(items, prepared, strict=True):
        scores = [score for _ in of_item for score in next(found)]
        totals = np.array([score.log_likelihood for score in scores])
        if item.gold is None:
            right.append(scores[0].is_greedy)
            target_nats -= totals[0]
            continue
        lengths = np.array([len(text.strip().encode()) for _, text in item.pairs])
        right.append(int(totals.argmax()) == item.gold)
        right_norm.append(int((totals / lengths).argmax()) == item.gold)
        target_nats -= totals[item.gold]
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


def _prepare(engine: Engine, tokenizer: Tokenizer, item: Item) -> list[Branch]:
    """One branch for every different context of the item, in the order of its pairs."""
    limit = engine.config.max_positions
    branches: list[Branch] = []
    for (context, _), pairs in _grouped(item.pairs):
        encoded = [encode_pair(tokenizer, context, text) for _, text in pairs]
        context_ids = encoded[0][0] or [_first_token(tokenizer)]
        longest = max(len(ids) for _, ids in encoded)
        if longest > limit:
            raise DataError(
                f"a continuation of {longest} tokens exceeds the model's limit of {limit}"
            )
        context_ids = context_ids[-(limit - longest + 1) :]
        branches.append(Branch.of(context_ids, [ids for _, ids in encoded]))
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


def _standard_error(right: Sequence[bool]) -> float | None:
    if len(right) < 2:
        return None
    return float(np.std(right, ddof=1) / math.sqrt(len(right)))

"""Scores of many continuations of many contexts, each common beginning computed once.

Contexts are sorted, so that those that begin alike are neighbours: a prompt's examples, which all
items of a task share, run once, each context goes on from a fork of them, and each continuation
from a fork of its context. Whatever runs at a time is one ragged batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from slimformer.engine import Engine, Mask, Session

BATCH_TOKENS = 2048
"""Tokens of contexts that run in one pass."""

BATCH_ROWS = 256
"""Rows of logits held at once: 50 MB with 49,152 float32 entries each."""

MIN_SHARED = 32
"""Tokens that contexts must begin with in common for a session of their own: below, keeping one
more session costs more than the few rows that it saves."""


@dataclasses.dataclass(frozen=True)
class Branch:
    """A context but for its last token, and the texts that go on from there.

    Each continuation starts with the context's last token, so that its first own token is
    predicted by the continuation's first row.
    """

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @staticmethod
    def of(context: Sequence[int], continuations: Sequence[Sequence[int]]) -> Branch:
        """A context of one token at least, and what may follow it."""
        return Branch(context[:-1], [[context[-1], *ids] for ids in continuations])

    @property
    def rows(self) -> int:
        """Rows of logits that scoring it takes."""
        return sum(len(ids) - 1 for ids in self.continuations)

    @property
    def length(self) -> int:
        """Positions that it takes at most."""
        return len(self.context) + max(len(ids) - 1 for ids in self.continuations)


@dataclasses.dataclass(frozen=True)
class Score:
    """One continuation: its log likelihood, and whether greedy decoding produces it."""

    log_likelihood: float
    is_greedy: bool


@dataclasses.dataclass
class _Stem:
    """A beginning that several contexts have in common, or a whole context that has none."""

    tokens: Sequence[int]
    members: list[int]
    capacity: int
    session: Session | None = None


def score_branches(
    engine: Engine,
    branches: Sequence[Branch],
    *,
    mask: Mask | None = None,
    done: Callable[[int], None] | None = None,
) -> list[list[Score]]:
    """Scores of every branch's continuations.

    Parameters
    ----------
    engine
        The model.
    branches
        Contexts with their continuations; none may exceed the model's limit.
    mask
        Run with parts of the model switched off.
    done
        Told after every pass how many branches are scored.
    """
    scores: list[list[Score]] = [[] for _ in branches]
    finished = 0
    for batch in _batches(branches):
        for index, found in _score(engine, branches, batch, mask):
            scores[index] = found
            finished += 1
        if done is not None:
            done(finished)
    return scores


def _stems(branches: Sequence[Branch]) -> Iterator[_Stem]:
    """Every branch under the beginning that it shares with its neighbours."""
    stem: _Stem | None = None
    for index in sorted(range(len(branches)), key=lambda i: list(branches[i].context)):
        branch = branches[index]
        if stem is not None:
            shared = _common(stem.tokens, branch.context)
            # A beginning that many share is not cut short for one that shares little of it.
            least = max(MIN_SHARED, len(stem.tokens) // 2 if len(stem.members) > 1 else 0)
            if shared >= least or shared == len(stem.tokens) == len(branch.context):
                stem.tokens = stem.tokens[:shared]
                stem.members.append(index)
                stem.capacity = max(stem.capacity, branch.length)
                continue
            yield stem
        stem = _Stem(branch.context, [index], branch.length)
    if stem is not None:
        yield stem


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that both begin with."""
    length = min(len(first), len(second))
    differ = np.flatnonzero(np.not_equal(first[:length], second[:length]))
    return int(differ[0]) if len(differ) else length


def _batches(branches: Sequence[Branch]) -> Iterator[list[tuple[_Stem, int]]]:
    """Runs of branches within the limits of one pass, one branch at least."""
    batch: list[tuple[_Stem, int]] = []
    tokens = rows = 0
    for stem in _stems(branches):
        for index in stem.members:
            more_tokens = len(branches[index].context) - len(stem.tokens)
            more_tokens += len(stem.tokens) if index == stem.members[0] else 0
            more_rows = branches[index].rows
            if batch and (tokens + more_tokens > BATCH_TOKENS or rows + more_rows > BATCH_ROWS):
                yield batch
                batch, tokens, rows = [], 0, 0
            batch.append((stem, index))
            tokens += more_tokens
            rows += more_rows
    if batch:
        yield batch


def _score(
    engine: Engine,
    branches: Sequence[Branch],
    batch: Sequence[tuple[_Stem, int]],
    mask: Mask | None,
) -> Iterator[tuple[int, list[Score]]]:
    """The scores of a batch of branches, each with its index."""
    starting = [(stem, stem.tokens) for stem, index in batch if index == stem.members[0]]
    for stem, _ in starting:
        stem.session = engine.session(mask, capacity=stem.capacity)
    _feed(engine, [(stem.session, tokens) for stem, tokens in starting if stem.session])
    trunks = []
    for stem, index in batch:
        assert stem.session is not None
        trunks.append((stem.session.fork(), branches[index].context[len(stem.tokens) :]))
    _feed(engine, trunks)
    for stem, index in batch:
        if index == stem.members[-1]:
            stem.session = None
    forks: list[Session] = []
    texts: list[Sequence[int]] = []
    for (trunk, _), (_, index) in zip(trunks, batch, strict=True):
        for ids in branches[index].continuations:
            forks.append(trunk.fork())
            texts.append(ids)
    logits = engine.forward(forks, [ids[:-1] for ids in texts], logits="all")
    row = 0
    for _, index in batch:
        scores = []
        for ids in branches[index].continuations:
            scores.append(_score_rows(logits[row : row + len(ids) - 1], ids[1:]))
            row += len(ids) - 1
        yield index, scores


def _feed(engine: Engine, pairs: Sequence[tuple[Session, Sequence[int]]]) -> None:
    """Run tokens through sessions, in one pass; nothing where there are none."""
    given = [(session, tokens) for session, tokens in pairs if len(tokens)]
    if given:
        sessions, tokens = zip(*given, strict=True)
        engine.forward(sessions, tokens, logits="none")


def _score_rows(logits: npt.NDArray[np.float32], targets: Sequence[int]) -> Score:
    """``logits`` is [targets, vocabulary]."""
    top = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=1, dtype=np.float64))
    chosen = logits[np.arange(len(targets)), targets] - top[:, 0]
    return Score(
        log_likelihood=float((chosen - log_sum).sum()),
        is_greedy=bool((logits.argmax(axis=1) == np.asarray(targets)).all()),
    )

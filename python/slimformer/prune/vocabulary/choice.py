"""Which tokens a model keeps, judged by how often text needs them."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.errors import BudgetError, DataError
from slimformer.progress import Progress, silent
from slimformer.prune.recipe import Recipe
from slimformer.prune.vocabulary.description import Description
from slimformer.prune.vocabulary.predictions import predicted_shares
from slimformer.tokenizer import Tokenizer

Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]

COVERED = 0.99
"""Share of other text of the same kind that the tokens that stay are enough for, by default.

A token that is missing costs about ten bits each time: models know other spellings badly."""

PREDICTED = 3.0
"""How many times the text's own length is added to it in text that the model predicts."""

ZIPF = 0.5
"""What is added where a model predicts none, as an encoder: text whose tokens go by Zipf's law.

A vocabulary is made by merging what is frequent first, so a token's place in it says how often it
was found in far more text than anyone counts on: of two tokens that this text has once, the one
with the lower id will be needed more often."""

ZIPF_START = 50
"""Tokens at the start of a vocabulary are bytes and special ones, and not more frequent."""

STRANGE = 1e-4
"""Characters that are together no more of the text than this belong to other languages."""

STRANGE_WEIGHT = 0.02
"""What the place in the vocabulary of a token with such characters counts."""


def count_tokens(checkpoint: Checkpoint, texts: Iterable[str]) -> Counts:
    """How often each token is needed to write some texts, [vocab_size].

    Raises
    ------
    DataError
        The model has no tokenizer.
    """
    if checkpoint.tokenizer is None:
        raise DataError(f"{checkpoint.name} has no tokenizer, so its tokens cannot be counted")
    tokenizer = Tokenizer(checkpoint.tokenizer)
    counts = np.zeros(checkpoint.config.vocab_size, np.int64)
    for text in texts:
        ids = tokenizer.encode(text, add_bos=False)
        counts += np.bincount(ids, minlength=len(counts))[: len(counts)]
    return counts


def zipf_shares(token_texts: Sequence[str], texts: Sequence[str]) -> Shares:
    """The share of each token in a language, by its place in the vocabulary, [vocab_size].

    Parameters
    ----------
    token_texts
        What each token stands for.
    texts
        Some that show which characters are usual.
    """
    usual = _usual_characters(texts)
    weights = [1.0 if usual.issuperset(text) else STRANGE_WEIGHT for text in token_texts]
    zipf = np.asarray(weights) / (np.arange(len(weights)) + ZIPF_START)
    return np.asarray(zipf / zipf.sum())


def choose_rows(
    description: Description,
    shares: Shares,
    *,
    size: int | None = None,
    share: float = COVERED,
) -> tuple[int, ...]:
    """The rows that stay: the most needed tokens, and all that those are made of.

    Parameters
    ----------
    description
        The tokenizer.
    shares
        How much of a text each token is, [vocab_size].
    size
        How many rows may stay; if not given, as many as ``share`` of a text takes.
    """
    kept = description.required()
    covered = float(shares[sorted(kept)].sum())
    for token in np.argsort(-shares, kind="stable").tolist():
        if len(kept) == size if size is not None else covered >= share:
            break
        if token not in description.texts or token in kept:
            continue
        family = _with_ancestors(description, token) - kept
        if size is None or len(kept) + len(family) <= size:
            kept |= family
            covered += float(shares[sorted(family)].sum())
    return tuple(sorted(kept))


def cut_to_text(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    *,
    size: int | None = None,
    share: float | None = None,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> Recipe:
    """The recipe that keeps the tokens that text like this needs, and everything else.

    Parameters
    ----------
    checkpoint
        The model.
    texts
        What to count on.
    size
        Rows that stay.
    share
        Instead, how much of other text of this kind is to be written with the tokens that stay;
        99 % by default. What is left is written with shorter ones.
    seed
        Decides where in the texts the model makes predictions.
    threads
        0 takes all cores.
    progress
        Told of the layers that text flows through.

    Raises
    ------
    BudgetError
        The size is below what always stays, or the share is none; or both are given.
    DataError
        The model has no tokenizer, or the text no tokens.
    UnsupportedModelError
        Its tokenizer is of a kind whose vocabulary is not cut here.
    """
    counts = count_tokens(checkpoint, texts)
    if not counts.any():
        raise DataError("vocabulary: the text to count on has no tokens; give more text")
    assert checkpoint.tokenizer is not None
    description = Description(checkpoint.tokenizer, len(counts))
    _check_budget(description, size, share)
    if checkpoint.config.causal:
        added = PREDICTED * predicted_shares(
            checkpoint, texts, seed=seed, threads=threads, progress=progress
        )
    else:
        tokenizer = Tokenizer(checkpoint.tokenizer)
        spelled = [tokenizer.decode([row], skip_special=False) for row in range(len(counts))]
        added = ZIPF * zipf_shares(spelled, texts)
    expected = counts / counts.sum() + added
    rows = choose_rows(
        description,
        expected / expected.sum(),
        size=size,
        share=COVERED if share is None else share,
    )
    return dataclasses.replace(Recipe.identity(checkpoint), vocabulary=rows)


def _check_budget(description: Description, size: int | None, share: float | None) -> None:
    """Raise BudgetError for what cannot be met; choosing takes minutes."""
    if size is not None and share is not None:
        raise BudgetError("vocabulary: expected a size or a share, found both")
    least = len(description.required())
    if size is not None and size < least:
        raise BudgetError(
            f"vocabulary: expected at least {least} rows, which hold the special tokens and "
            f"those that any text can be written with, found {size}"
        )
    if share is not None and not 0 < share <= 1:
        raise BudgetError(f"vocabulary: expected a share above 0 and at most 1, found {share}")


def _usual_characters(texts: Sequence[str]) -> set[str]:
    """Characters of some texts, but for the rarest."""
    counts = collections.Counter(itertools.chain.from_iterable(texts))
    rest = sum(counts.values()) * (1 - STRANGE)
    usual = set()
    for character, count in counts.most_common():
        if rest <= 0:
            break
        usual.add(character)
        rest -= count
    return usual


def _with_ancestors(description: Description, token: int) -> set[int]:
    """A token, those it is made of, those they are made of, and so on."""
    found: set[int] = set()
    waiting = [token]
    while waiting:
        token = waiting.pop()
        if token not in found:
            found.add(token)
            waiting.extend(description.parents(token))
    return found

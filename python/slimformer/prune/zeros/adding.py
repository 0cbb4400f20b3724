"""From what the user asks for to a model with zeros."""

from __future__ import annotations

import dataclasses
import functools
import json

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.errors import ConfigError
from slimformer.progress import Progress, silent
from slimformer.prune.journal import Journal
from slimformer.prune.recipe import Recipe
from slimformer.prune.sparsify import cut
from slimformer.prune.stream import Windows
from slimformer.prune.windows import split
from slimformer.prune.zeros.choice import METHODS, SHARINGS, Method, Sharing, Zeros, layer_sizes
from slimformer.prune.zeros.pattern import Pattern
from slimformer.prune.zeros.prices import measure_costs
from slimformer.prune.zeros.shares import shares_by_cost
from slimformer.prune.zeros.vocabulary import VOCABULARY
from slimformer.prune.zeros.walk import fill

DRAFT_TOKENS = 4096
"""Tokens that a draft is made on, whose zeros are priced: prices are ratios, and survivors that are
not refitted leave them much the same."""

MORE = 0.1
"""By how much higher the share is in the sparser draft, whose zeros are priced."""

TRIAL_TOKENS = 1024
"""Tokens of other text that they are priced on."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """How many weights are to become zero, where, and by which criterion.

    Parameters
    ----------
    sparsity
        Share of the weights of all layers' matrices; ``None`` where the pattern says it.
    pattern
        See ``Pattern.parse``.
    method
        See ``Zeros``.
    vocabulary
        Share of embedding and head that becomes zero.
    sharing
        ``even``: all matrices have the same share. ``loss``: those whose zeros cost less have more
        of them, but for patterns that say how many stay.

    Raises
    ------
    ConfigError
        Unknown or contradictory settings.
    """

    sparsity: float | None
    pattern: str
    method: Method
    sharing: Sharing
    vocabulary: float = 0.0

    def __post_init__(self) -> None:
        share = Pattern.parse(self.pattern).share
        if self.method not in METHODS:
            raise ConfigError(f"zeros: expected one of {', '.join(METHODS)}, found {self.method!r}")
        if self.sharing not in SHARINGS:
            raise ConfigError(
                f"sharing: expected one of {', '.join(SHARINGS)}, found {self.sharing!r}"
            )
        if not 0 <= self.vocabulary < 1:
            raise ConfigError(
                f"vocabulary_sparsity: expected a share from 0 to below 1, found {self.vocabulary}"
            )
        if self.sparsity is None:
            if share is None:
                raise ConfigError(f"pattern {self.pattern}: expected a sparsity beside it")
        elif share is not None and abs(self.sparsity - share) > 1e-6:
            raise ConfigError(
                f"sparsity: expected {share}, which the pattern {self.pattern} comes to, or none, "
                f"found {self.sparsity}"
            )
        elif not 0 < self.sparsity < 1:
            raise ConfigError(
                f"sparsity: expected a share above 0 and below 1, found {self.sparsity}"
            )

    @property
    def share(self) -> float:
        """Share of zeros."""
        share = Pattern.parse(self.pattern).share
        return self.sparsity or 0.0 if share is None else share


def choose_zeros(
    checkpoint: Checkpoint,
    wish: Wish,
    windows: Windows | None,
    *,
    journal: Journal | None = None,
    threads: int = 0,
    progress: Progress = silent,
) -> Zeros:
    """The zeros that a wish comes to.

    Parameters
    ----------
    windows
        Calibration tokens, of which sharing by loss takes a few for a draft and for its price;
        without any all shares are the same.
    journal
        Of the shares once they are found.
    """
    pattern = Pattern.parse(wish.pattern)
    sizes = layer_sizes(checkpoint.config)
    rest = {name: wish.vocabulary for name in VOCABULARY if name in checkpoint.tensors}
    zeros = Zeros(wish.method, pattern, dict.fromkeys(sizes, wish.share))
    if wish.vocabulary > 0:
        zeros = dataclasses.replace(zeros, shares={**rest, **zeros.shares})
    if wish.sharing == "even" or windows is None or pattern.share is not None or not sizes:
        return zeros
    finished = None if journal is None else journal.finished()
    if finished is not None:
        return Zeros.from_dict(json.loads(finished), "zeros")
    fit, trial = split(windows, TRIAL_TOKENS / windows.size)
    fit = fit[: max(1, DRAFT_TOKENS // fit.shape[1])]
    more = min(wish.share + MORE, (1 + wish.share) / 2)
    draft, sparser = (
        fill(
            checkpoint,
            Zeros(wish.method, pattern, dict.fromkeys(sizes, share)),
            fit,
            refit=False,
            threads=threads,
            progress=lambda _, done, total: progress("draft zeros", done, total),
        )
        for share in (wish.share, more)
    )
    costs = measure_costs(checkpoint, draft, sparser, trial, threads=threads, progress=progress)
    shares = shares_by_cost(costs, sizes, wish.share)
    found = {name: round(shares[name], 4) for name in sizes}
    zeros = dataclasses.replace(zeros, shares={**zeros.shares, **found})
    if journal is not None:
        journal.finish(json.dumps(zeros.to_dict()))
    return zeros


def add_zeros(
    checkpoint: Checkpoint,
    zeros: Zeros,
    windows: Windows | None,
    *,
    refit: bool,
    journal: Journal | None = None,
    threads: int = 0,
    progress: Progress = silent,
) -> Checkpoint:
    """The model with these zeros, its recipe saying so, to be saved without them.

    Parameters
    ----------
    windows
        Calibration tokens, [windows, tokens]; magnitudes without refit need none.
    refit, journal
        See ``fill``.
    """
    if windows is None:
        filled = _by_magnitude(checkpoint, zeros)
    else:
        filled = fill(
            checkpoint,
            zeros,
            windows,
            refit=refit,
            journal=journal,
            threads=threads,
            progress=progress,
        )
    before = checkpoint.recipe
    recipe = Recipe.identity(checkpoint) if before is None else Recipe.from_dict(before)
    told = dataclasses.replace(recipe, zeros=zeros).to_dict()
    return dataclasses.replace(filled, sparse=True, recipe=told)


def _by_magnitude(checkpoint: Checkpoint, zeros: Zeros) -> Checkpoint:
    """The smallest weights zero; tensors are read and cut when they are asked for."""
    made = {
        name: cut(checkpoint.tensors[name], functools.partial(zeros.pattern.select, sparsity=share))
        for name, share in zeros.shares.items()
        if share > 0
    }
    return dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, **made})

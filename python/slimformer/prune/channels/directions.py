"""Directions of the stream that the model can do without.

A direction is cheap if what is there can be told from the rest of the stream, or if little comes
of not knowing it. The stream's second moment tells the one, the loss's gradient the other. How many
directions go together matters: they are found as one subspace, going down the gradient of what is
lost on the manifold of orthonormal columns (Edelman et al. 1998, arXiv physics/9806030).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

DAMPING = 0.03
"""Ridge on a second moment, relative to its mean diagonal: how far a few thousand tokens are to be
believed that one part of the stream tells the other."""

ROUNDS = 60
"""Steps; after so many, one gains less than a hundredth."""

STEP, GROWTH, CUT, TRIES = 0.3, 1.6, 3.0, 8
"""Length of the first step, by what each next one is longer, by what one is shorter that was too
long, and how often."""

DESCENT = 1e-4
"""Share of what the slope promises that a step has to gain."""


def cheapest_directions(moments: Sequence[Array], sensitivity: Array, count: int) -> Array:
    """Orthonormal columns whose removal costs least, [channels, count].

    At a place that reads the stream, the best guess of what is removed, made from what is left,
    errs by ``(R' C^-1 R)^-1`` for the second moment C there. What that costs is the sum over all
    places of the trace of its product with ``R' F R``.

    Parameters
    ----------
    moments
        Second moment of the stream at each place, [channels, channels].
    sensitivity
        F: what errors cost in each direction, [channels, channels].
    count
        How many directions go.
    """
    size = len(sensitivity)
    inverses = [_inverse(moment) for moment in moments]
    metric = (sensitivity / max(float(np.trace(sensitivity)), 1e-30)).astype(np.float32)
    columns = np.linalg.eigh(np.sum(moments, axis=0))[1][:, :count]
    if count in (0, size):
        return columns
    cost, slope = _cost(columns, metric, inverses)
    direction, before = np.zeros_like(columns), None
    step = 0.0
    for _ in range(ROUNDS):
        gradient = _tangent(columns, slope)
        direction = _conjugate(gradient, before, _tangent(columns, direction))
        before = gradient
        steepness = float(np.sum(direction * gradient))
        if steepness == 0:
            break
        step = step or STEP / float(np.linalg.norm(direction))
        for _ in range(TRIES):
            trial = _orthonormal(columns + step * direction)
            found, slope_there = _cost(trial, metric, inverses)
            if found < cost + DESCENT * step * steepness:
                break
            step /= CUT
        else:
            break
        columns, cost, slope = trial, found, slope_there
        step *= GROWTH
    return columns


def completed(removed: Array, moments: Sequence[Array]) -> Array:
    """An orthogonal basis of which these are the last columns, [channels, channels].

    The others are the principal directions of what is left of the stream, most first.
    """
    kept = np.linalg.qr(removed, mode="complete")[0][:, removed.shape[1] :]
    _, vectors = np.linalg.eigh(kept.T @ np.sum(moments, axis=0) @ kept)
    return np.concatenate([kept @ vectors[:, ::-1], removed], axis=1)


def _inverse(moment: Array) -> Floats:
    ridge = max(DAMPING * float(np.trace(moment)) / len(moment), 1e-30)
    return np.linalg.inv(moment + ridge * np.eye(len(moment))).astype(np.float32)


def _cost(columns: Array, metric: Floats, inverses: Sequence[Floats]) -> tuple[float, Array]:
    """What is lost without these directions, and its gradient."""
    single = columns.astype(np.float32)
    weighted = metric @ single
    felt = single.T @ weighted
    errors = np.zeros_like(felt)
    told = np.zeros_like(single)
    for inverse in inverses:
        turned = inverse @ single
        error = np.linalg.inv(single.T @ turned)
        errors += error
        told += turned @ (error @ felt @ error)
    return float(np.sum(felt * errors)), 2.0 * (weighted @ errors - told).astype(np.float64)


def _tangent(columns: Array, vectors: Array) -> Array:
    """The part of a change that leaves columns orthonormal, to first order."""
    inner = columns.T @ vectors
    tangent: Array = vectors - columns @ ((inner + inner.T) / 2)
    return tangent


def _conjugate(gradient: Array, before: Array | None, direction: Array) -> Array:
    """The next direction (Polak and Ribiere's), or straight down where that would not go down."""
    if before is not None:
        share = max(0.0, float(np.sum(gradient * (gradient - before)) / np.sum(before * before)))
        mixed: Array = share * direction - gradient
        if np.sum(mixed * gradient) < 0:
            return mixed
    return -gradient


def _orthonormal(columns: Array) -> Array:
    q, r = np.linalg.qr(columns)
    return np.asarray(q * np.where(np.diag(r) < 0, -1.0, 1.0))

"""Closed-form repair of the map that reads what was pruned.

The output- and the down-projection read the units that go. From second moments of their
inputs x and of the output y that is wanted, the functions here give new weights for the kept
columns: ``mean_compensation`` restores the mean of what the projection did, ``choose`` gives what
is wanted of it in the least-squares sense, as far as held-out text confirms it.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Columns = npt.NDArray[np.intp]

DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Multiples of the mean diagonal of the Gram matrix that ``choose`` picks from. Neurons are
nearly uncorrelated, so that few tokens allow little: on 16 thousand of them 1.0 leaves 0.87 of
the error that removed neurons cause, 0.01 leaves 0.95; on 4 thousand 0.01 makes it 1.4."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Second moments of the inputs of a linear map and of its wanted outputs.

    gram: sum of x x', [inputs, inputs]. cross: sum of x y', [inputs, outputs]. energy: sum of
    |y|^2. count: tokens.
    """

    gram: Array
    cross: Array
    energy: float
    count: int

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(
            self.gram + other.gram,
            self.cross + other.cross,
            self.energy + other.energy,
            self.count + other.count,
        )

    def of_columns(self, kept: Columns) -> Evidence:
        """What it says of a map that reads some of the inputs only."""
        return Evidence(self.gram[np.ix_(kept, kept)], self.cross[kept], self.energy, self.count)

    def error(self, weight: Array) -> float:
        """Mean over the tokens of ``|weight x - y|^2``; weight is [outputs, inputs]."""
        linear = float(np.vdot(weight.T, self.cross))
        quadratic = float(np.vdot(weight.T, self.gram @ weight.T))
        return (quadratic - 2 * linear + self.energy) / max(1, self.count)


def for_kept(evidence: Evidence, weight: Floats, kept: Columns) -> tuple[Evidence, Evidence]:
    """Evidence for the kept columns of a map: to give what the others gave, and what is wanted.

    Parameters
    ----------
    evidence
        Moments over all columns.
    weight
        The whole map, [outputs, inputs].
    kept
        Columns that stay.
    """
    gone = np.setdiff1d(np.arange(weight.shape[1]), kept)
    of_gone = weight[:, gone].T.astype(np.float64)
    lost = evidence.gram[:, gone] @ of_gone  # sum of x y', [inputs, outputs]
    energy = float(np.vdot(of_gone, lost[gone]))
    gram = evidence.gram[np.ix_(kept, kept)]
    return (
        Evidence(gram, lost[kept], energy, evidence.count),
        Evidence(gram, evidence.cross[kept], evidence.energy, evidence.count),
    )


@dataclasses.dataclass(frozen=True)
class Refit:
    """Outcome of ``choose``: ``damping`` is ``None`` where the old weight is the better one.

    ``without`` holds, for each part of the text, the weight that has not seen it. ``before`` and
    ``after`` are errors on the last part, of the old weight and of the one that has not seen it;
    see ``Evidence.error``.
    """

    weight: Array
    without: tuple[Array, ...]
    damping: float | None
    before: float
    after: float


def least_squares(evidence: Evidence, weight: Array, damping: float) -> Array:
    """Weights that reproduce the wanted outputs, drawn towards ``weight``.

    Minimises ``sum |B x - y|^2 + damping * mean(diag(gram)) * |B - weight|^2``: with much
    evidence the least-squares solution, with none the weight as it was.

    Parameters
    ----------
    evidence
        Moments over the kept columns.
    weight
        Old weights of the kept columns, [outputs, inputs].
    damping
        Relative to the mean diagonal of the Gram matrix.

    Returns
    -------
    New weights, [outputs, inputs].
    """
    ridge = damping * float(np.trace(evidence.gram)) / len(evidence.gram)
    if ridge == 0.0:
        solution, *_ = np.linalg.lstsq(evidence.gram, evidence.cross, rcond=None)
        return np.ascontiguousarray(solution.T)
    system = evidence.gram.copy()
    system.flat[:: len(system) + 1] += ridge
    solution = np.linalg.solve(system, evidence.cross + ridge * weight.T)
    return np.ascontiguousarray(solution.T)


def choose(
    parts: Sequence[Evidence],
    weight: Array,
    *,
    first: float,
    dampings: Sequence[float] = DAMPINGS,
) -> Refit:
    """Refit with the damping that does best on text not fitted, if it does better than nothing.

    The damping is chosen, and the refit accepted, by what a fit on all other parts does on the
    last one: the error falls and then rises with the damping, so the search walks downhill from
    ``first`` and solves for a few of them only.

    Parameters
    ----------
    parts
        Evidence from the parts of the text, two at least.
    weight
        Old weights of the kept columns, [outputs, inputs].
    first
        One of the dampings, best one near the end of the search.
    dampings
        What there is to choose from, ascending.
    """
    before = parts[-1].error(weight)
    if before == 0:
        return Refit(weight, (weight,) * len(parts), None, before, before)
    others = _all_but(parts, len(parts) - 1)
    unseen = weight  # the best found so far without the last part
    errors: dict[int, float] = {}

    def error(step: int) -> float:
        nonlocal unseen
        if not 0 <= step < len(dampings):
            return np.inf
        if step not in errors:
            tried = least_squares(others, weight, dampings[step])
            found = parts[-1].error(tried)
            if found < min(errors.values(), default=np.inf):
                unseen = tried
            errors[step] = found
        return errors[step]

    best = dampings.index(first)
    while (nearest := min((best, best - 1, best + 1), key=error)) != best:
        best = nearest
    after = errors[best]
    if not after < before:
        return Refit(weight, (weight,) * len(parts), None, before, before)
    damping = dampings[best]
    without = [
        least_squares(_all_but(parts, index), weight, damping) for index in range(len(parts) - 1)
    ]
    new = least_squares(functools.reduce(operator.add, parts), weight, damping)
    return Refit(new, (*without, unseen), damping, before, after)


def _all_but(parts: Sequence[Evidence], index: int) -> Evidence:
    """The evidence without one part; with two parts it is the other one, and nothing is copied."""
    return functools.reduce(operator.add, [*parts[:index], *parts[index + 1 :]])


def mean_compensation(weight: Array, kept: Columns, mean: Array, gram: Array) -> Array:
    """Weights of the kept columns with which the mean output stays what it was.

    Of all corrections that do so, the one that changes the outputs least (in the metric of the
    kept inputs' Gram matrix). Needs no bias, which most models lack; the idea of replacing what
    went by its mean is FLAP's (An et al. 2023, arXiv 2312.11983).

    Parameters
    ----------
    weight
        Weights of all columns, [outputs, inputs].
    kept
        Columns that stay.
    mean, gram
        Mean input, [inputs], and sum (or mean) of x x', [inputs, inputs], of all columns.

    Returns
    -------
    New weights, [outputs, len(kept)].
    """
    stays = weight[:, kept]
    lost = weight @ mean - stays @ mean[kept]  # [outputs]
    inner = gram[np.ix_(kept, kept)]
    ridge = 1e-6 * float(np.trace(inner)) / len(inner)
    if ridge == 0.0 or not mean[kept].any():
        return np.ascontiguousarray(stays)
    direction = np.linalg.solve(inner + ridge * np.eye(len(inner)), mean[kept])
    return stays + np.outer(lost, direction / float(mean[kept] @ direction))

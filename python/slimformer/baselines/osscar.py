"""OSSCAR: neurons chosen with the reconstruction of the layer's output in view, then refitted.

Meng et al. 2024, arXiv 2403.12983: minimise ``|X W - X_kept V|^2`` over the choice of neurons and
V. Here the choice is greedy, the cheapest neurons of every round going at once with the others
made up for (the paper's local search on top of it changes little), each layer on the pruned
model's inputs; the target is the layer's own output.
"""

from __future__ import annotations

import numpy as np

from slimformer.baselines.in_turn import Array, prune_in_turn
from slimformer.baselines.task import Task
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.engine import Moments

DAMPING = 0.01
"""Ridge on the Gram matrix, relative to its mean diagonal."""

ROUNDS = 16


def prune(task: Task) -> Checkpoint:
    """The pruned model."""
    return prune_in_turn(task, _choose, gram=True)


def _choose(down: Array, inputs: Moments, count: int) -> tuple[tuple[int, ...], Array]:
    size = down.shape[1]
    ridge = max(DAMPING * float(np.trace(inputs.gram)) / size, 1e-150)
    system = inputs.gram + ridge * np.eye(size)
    inverse, rows, alive = np.linalg.inv(system), down.T.copy(), np.arange(size)
    for left in np.linspace(size, count, ROUNDS + 1).round().astype(int)[1:]:
        costs = np.einsum("no,no->n", rows, rows) / np.diagonal(inverse)
        gone = np.argsort(costs, kind="stable")[: len(alive) - left]
        stays = np.delete(np.arange(len(alive)), gone)
        solved = np.linalg.solve(
            inverse[np.ix_(gone, gone)], np.concatenate([rows[gone], inverse[gone]], axis=1)
        )
        coupling = inverse[np.ix_(stays, gone)]
        rows = rows[stays] - coupling @ solved[:, : rows.shape[1]]
        inverse = inverse[np.ix_(stays, stays)] - coupling @ solved[:, rows.shape[1] :][:, stays]
        alive = alive[stays]
    wanted = system[alive] @ down.T
    refitted = np.linalg.solve(system[np.ix_(alive, alive)], wanted)
    return tuple(alive.tolist()), refitted.T

"""Optimal brain surgeon: a unit costs the error that stays after the others have made up for it.

Hassibi and Stork 1993, for structures: Kwon et al. 2022 (arXiv 2204.09656), Kurtic et al. 2023
(ZipLM, arXiv 2302.04089).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig, RoutedFfnConfig
from slimformer.engine import Moments
from slimformer.prune.expert_rows import ExpertRows
from slimformer.prune.importance.scores import LayerScores
from slimformer.prune.importance.statistics import Inputs, LayerStatistics
from slimformer.prune.outputs import Output

Array = npt.NDArray[np.float64]

DAMPING = 0.3
"""Ridge on the Gram matrix, relative to its diagonal: what a few thousand tokens can tell of the
correlations between neurons is mostly chance, and less damping believes it. Relative to the mean of
the diagonal it would be as much as quiet neurons have themselves, and rate those by the length of
their weights: half of Gemma 3's have a third of the mean or little more."""

PRIOR = 0.1
"""What each neuron is taken to add besides, as a share of what those of its FFN add on average: on
other text it may be another's turn. That does not change which neurons of an FFN go, but how many:
late layers, of which any one text shows a few loud neurons and many quiet ones, keep more of these,
and the model loses less on text unlike that of the calibration."""

TINY = 1e-150
"""Ridge on inputs that are always zero, so that the matrix can be inverted."""

ROUNDS = 12
"""Half of the neurons go in that many rounds, within one of which their mutual compensation is
neglected. The dearer half is rated as it is then: it hardly ever goes."""


def score(checkpoint: Checkpoint, index: int, statistics: LayerStatistics) -> LayerScores:
    """Rate every structure of one layer by the error that its removal leaves.

    Units are removed one by one (neurons and entries of values some at a time), cheapest first,
    each time compensated by least squares on what stays; a unit's score is the error it adds when
    its turn comes, as a share of the energy of the residual stream; a neuron's also holds
    ``PRIOR``. Neurons of an expert are compensated by others of that expert, on the tokens that run
    it. Sub-blocks and experts are rated by what they add to the stream: nothing compensates those,
    and what other experts do for one is seen by a repair only. So are rotary pairs, by what is
    another without them.
    """
    layer = checkpoint.config.layers[index]
    heads = groups = values = neurons = experts = None
    if isinstance(layer.attention, AttentionConfig):
        weight = Output(checkpoint, index, "attention").stream_weight
        columns = np.arange(weight.shape[1]).reshape(layer.attention.n_heads, -1)
        reads = np.asarray(layer.attention.q_to_kv)
        members = [columns[reads == kv].reshape(-1) for kv in range(layer.attention.n_kv_heads)]
        heads = _eliminate(statistics.heads, weight, list(columns), len(columns))
        groups = _eliminate(statistics.heads, weight, members, len(members))
        values = _eliminate(statistics.heads, weight, list(columns.T), 2 * ROUNDS)
    if isinstance(layer.ffn, FfnConfig):
        weight = Output(checkpoint, index, "ffn").stream_weight
        neurons = _neurons(statistics.neurons, weight)
    if isinstance(layer.ffn, RoutedFfnConfig):
        assert statistics.experts is not None
        experts = statistics.experts.mean_square
        neurons = _neurons_of_experts(checkpoint, index, layer.ffn, statistics.expert_rows)
    return LayerScores(
        statistics.layer.relative,
        statistics.attention.relative,
        statistics.ffn.relative,
        groups,
        heads,
        neurons,
        experts,
        values,
        statistics.pairs,
    )


def _neurons_of_experts(
    checkpoint: Checkpoint, index: int, ffn: RoutedFfnConfig, rows: ExpertRows | None
) -> Array:
    """Error that each neuron of each expert adds, a mean over all tokens, [neurons of all]."""
    assert rows is not None
    weight = Output(checkpoint, index, "ffn").stream_weight
    ends = np.cumsum(ffn.experts)
    found = []
    for expert, (end, width) in enumerate(zip(ends, ffn.experts, strict=True)):
        moments = Moments(width, gram=True)
        moments.update(rows.of(expert)[1])
        gram = moments.gram / max(1, rows.count)
        found.append(_neurons(Inputs(np.diagonal(gram), gram), weight[:, end - width : end]))
    return np.concatenate(found)


def _neurons(inputs: Inputs | None, weight: npt.NDArray[np.float32]) -> Array:
    """Error that each neuron adds, and ``PRIOR``, [neurons]."""
    assert inputs is not None
    units = list(np.arange(weight.shape[1])[:, None])
    prior = PRIOR * float(inputs.energies(weight).mean())
    return _eliminate(inputs, weight, units, 2 * ROUNDS) + prior


def _eliminate(
    inputs: Inputs | None,
    weight: npt.NDArray[np.float32],
    units: list[npt.NDArray[np.intp]],
    rounds: int,
) -> Array:
    """Error that each unit adds when it goes, cheapest first, [units]; never falling.

    Parameters
    ----------
    inputs
        Moments of the columns of the projection, with their Gram matrix.
    weight
        The projection, [outputs, columns].
    units
        The columns of each unit.
    rounds
        In how many rounds all units would go; with fewer rounds than units only half of the
        units go, and the others are rated as they are then.
    """
    assert inputs is not None
    assert inputs.gram is not None
    system = inputs.gram.copy()
    system.flat[:: len(system) + 1] += np.maximum(DAMPING * inputs.gram.diagonal(), TINY)
    inverse = np.asarray(np.linalg.inv(system), np.float64)
    del system
    columns = weight.T.astype(np.float64)  # [columns, outputs]
    scores = np.zeros(len(units))
    alive = np.arange(len(units))
    per_round = -(-len(units) // rounds)
    stop = 1 if per_round == 1 else len(units) // 2
    reached = 0.0
    while True:
        costs = np.maximum(reached, _costs(inverse, columns, [units[unit] for unit in alive]))
        scores[alive] = costs
        if len(alive) <= stop:
            break
        order = np.argsort(costs, kind="stable")[:per_round]
        reached = float(costs[order].max())
        gone = np.concatenate([units[unit] for unit in alive[order]])
        alive = np.delete(alive, order)
        _remove(inverse, columns, gone)
    return scores


def _costs(inverse: Array, columns: Array, units: list[npt.NDArray[np.intp]]) -> Array:
    """``tr(B_g' [(H^-1)_gg]^-1 B_g)`` of each unit g, [units]."""
    if all(len(unit) == 1 for unit in units):
        single = np.concatenate(units)
        squares = np.einsum("co,co->c", columns[single], columns[single])
        return np.asarray(squares / np.diagonal(inverse)[single])
    costs = []
    for unit in units:
        solved = np.linalg.solve(inverse[np.ix_(unit, unit)], columns[unit])
        costs.append(float(np.vdot(columns[unit], solved)))
    return np.asarray(costs)


def _remove(inverse: Array, columns: Array, gone: npt.NDArray[np.intp]) -> None:
    """Take columns away: the others make up for them, the inverse forgets them. In place."""
    pivot = inverse[np.ix_(gone, gone)]
    coupling = inverse[:, gone]
    solved = np.linalg.solve(pivot, np.concatenate([columns[gone], coupling.T], axis=1))
    outputs = columns.shape[1]
    columns -= coupling @ solved[:, :outputs]
    inverse -= coupling @ solved[:, outputs:]
    columns[gone] = 0
    inverse[gone] = 0
    inverse[:, gone] = 0

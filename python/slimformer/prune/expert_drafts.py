"""Routed FFNs in drafts: quickly fitted experts, and which of their units variants keep."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import RoutedFfnConfig
from slimformer.prune.expert_refit import ExpertEvidence, Fit
from slimformer.prune.importance.scores import LayerScores
from slimformer.prune.outputs import Output
from slimformer.prune.recipe import KeptExperts, KeptLayer, Recipe, keep_experts
from slimformer.prune.refit import Evidence, least_squares
from slimformer.prune.stream import Hidden, precision, sub_block_engine
from slimformer.prune.surgery import apply


def fitted_experts(
    checkpoint: Checkpoint,
    index: int,
    kept: KeptExperts,
    streams: tuple[Hidden, Hidden, Hidden],
    dampings: Sequence[float],
    threads: int,
) -> Checkpoint:
    """A model of one layer, with what is kept of the experts of layer ``index``, fitted.

    Parameters
    ----------
    streams
        What the FFN adds to, what it reads and what should come out, each
        [windows, tokens, channels].
    dampings
        For the output of what went and for the drift.
    """
    stream, read, wanted = streams
    layer = KeptLayer(index, None, kept)
    single = apply(checkpoint, Recipe(checkpoint.name, checkpoint.fingerprint, (layer,)))
    (cut,) = single.config.layers
    ffn = cut.ffn
    assert isinstance(ffn, RoutedFfnConfig)
    output = Output(single, 0, "ffn")
    evidence = ExpertEvidence.gather(
        sub_block_engine(checkpoint, index, "ffn", threads=threads),
        sub_block_engine(single, 0, "ffn", threads=threads),
        ffn,
        output,
        stream,
        read,
        wanted,
    )

    def solve(_: int, wishes: list[list[Evidence]]) -> list[Fit]:
        fits: list[Fit] = []
        for (found,), damping in zip(wishes, dampings, strict=True):
            start = np.zeros(found.cross.shape[::-1])
            change = least_squares(found, start, damping) if found.energy > 0 else start
            fits.append((change, (change,)))
        return fits

    whole = (slice(0, evidence.rows.count),)
    name = f"layers.{index}.ffn"
    products = precision(checkpoint)
    fits = evidence.fit(name, len(ffn.experts), whole, solve, products=products, threads=threads)
    weights = {}
    for expert, ((lost, _), (drift, _)) in enumerate(fits):
        down = f"layers.0.ffn.experts.{expert}.down.weight"
        weights[down] = (single.read_f32(down) + output.change(lost + drift)).astype(np.float32)
    return single.with_tensors(weights)


def expert_variants(
    ffn: RoutedFfnConfig, kept: KeptExperts, rated: LayerScores, step: float
) -> list[tuple[KeptExperts, float]]:
    """A ``step`` of all neurons less than is kept, and all experts; each with the error it adds.

    The dearest neuron of each expert stays.
    """
    of_neurons, of_experts = rated.neurons, rated.experts
    assert of_neurons is not None
    assert of_experts is not None
    starts = np.cumsum([0, *ffn.experts])
    costs = [of_neurons[start:end] for start, end in itertools.pairwise(starts)]

    def error(one: KeptExperts) -> float:
        left = sum(
            float(costs[expert].sum() - costs[expert][list(neurons)].sum())
            for expert, neurons in zip(one.experts, one.neurons, strict=True)
        )
        gone = set(range(len(ffn.experts))) - set(one.experts)
        return left + sum(float(of_experts[expert]) for expert in sorted(gone))

    ascending = sorted(
        (float(costs[expert][neuron]), place, neuron)
        for place, (expert, neurons) in enumerate(zip(kept.experts, kept.neurons, strict=True))
        for neuron in neurons
    )
    left = [set(neurons) for neurons in kept.neurons]
    for _, place, neuron in ascending[: max(1, round(step * ffn.n_neurons))]:
        if len(left[place]) > 1:
            left[place].remove(neuron)
    fewer = KeptExperts(kept.experts, tuple(tuple(sorted(neurons)) for neurons in left))
    whole = keep_experts(ffn, tuple(range(len(ffn.experts))))
    assert whole is not None
    choices = [one for one in (fewer, whole) if one != kept]
    return [(one, error(one) - error(kept)) for one in choices]

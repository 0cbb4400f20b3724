"""Repair of a routed FFN: its experts, each on the tokens that run it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import RoutedFfnConfig
from slimformer.engine import Engine, Moments
from slimformer.prune.evidence import Products, check_finite
from slimformer.prune.expert_refit import ExpertEvidence, Fit
from slimformer.prune.expert_rows import ExpertRows
from slimformer.prune.outputs import Output
from slimformer.prune.recipe import KeptExperts
from slimformer.prune.refit import Evidence, choose, mean_compensation
from slimformer.prune.stream import TAPS, Hidden, chunks

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Store = Callable[[str, Array], npt.DTypeLike]
"""Keeps a new weight under its name and says what type it is stored in."""


def refit_experts(
    dense: Engine,
    pruned: Engine,
    checkpoint: Checkpoint,
    index: int,
    streams: tuple[Hidden, Hidden, Hidden],
    parts: Sequence[slice],
    dampings: Sequence[float],
    store: Store,
    *,
    products: Products,
    threads: int,
) -> Hidden:
    """Refit the down-projection of each expert; what is wanted is as for a dense FFN.

    Tokens whose expert has gone run others, so that those make up for it, too. A rare expert is
    known by few tokens: it stays as it is unless the refit is confirmed over all parts of the text,
    each by what was fitted on the others.

    Parameters
    ----------
    dense, pruned
        Engines that hold the sub-block as it was, and after surgery.
    checkpoint, index
        The model after surgery, and the layer there.
    streams
        What the sub-block adds to, what it reads and what should come out of it; each
        [windows, tokens, channels].
    parts
        Parts of the windows.
    dampings
        Where the search begins, for the output of what went and for the drift.

    Returns
    -------
    The stream behind the sub-block; each part flows through weights fitted on the others.
    """
    ffn = checkpoint.config.layers[index].ffn
    assert isinstance(ffn, RoutedFfnConfig)
    stream, read, wanted = streams
    output = Output(checkpoint, index, "ffn")
    evidence = ExpertEvidence.gather(dense, pruned, ffn, output, stream, read, wanted)
    length = stream.shape[1]
    stretches = [slice(part.start * length, part.stop * length) for part in parts]

    def solve(_: int, wishes: list[list[Evidence]]) -> list[Fit]:
        return [_confirmed(*one) for one in zip(wishes, dampings, strict=True)]

    name = f"layers.{index}.ffn"
    fits = evidence.fit(
        name, len(ffn.experts), stretches, solve, products=products, threads=threads
    )
    weights: list[list[Floats]] = []
    for expert, of_wishes in enumerate(fits):
        down = f"{name}.experts.{expert}.down.weight"
        old = checkpoint.read_f32(down).astype(np.float64)
        changes, without = zip(*of_wishes, strict=True)
        stored = store(down, old + output.change(_sum(changes)))
        unseen = [old + output.change(_sum(of_part)) for of_part in zip(*without, strict=True)]
        weights.append([weight.astype(stored).astype(np.float32) for weight in unseen])
    added = evidence.output(stretches, weights).reshape(stream.shape)
    return output.joined(stream, added)


def _confirmed(parts: list[Evidence], first: float) -> Fit:
    """What meets a wish, or nothing where text that was not fitted does not bear it out."""
    start = np.zeros(parts[0].cross.shape[::-1])
    found = choose(parts, start, first=first)
    pairs = zip(parts, found.without, strict=True)
    left = sum(part.count * part.error(unseen) for part, unseen in pairs)
    if not left < sum(part.energy for part in parts):
        return start, [start] * len(parts)
    return found.weight, found.without


def _sum(arrays: Sequence[Array]) -> Array:
    return functools.reduce(operator.add, arrays)


def compensate_experts(
    dense: Engine,
    checkpoint: Checkpoint,
    source: int,
    kept: KeptExperts,
    read: Hidden,
    *,
    threads: int,
) -> dict[int, Array]:
    """Fold the mean output of the neurons that went from an expert into those that stay.

    What experts added that are gone as a whole is not made up for.

    Parameters
    ----------
    dense
        An engine that holds the sub-block of layer ``source`` of ``checkpoint``, the whole model.
    read
        What the sub-block reads, [windows, tokens, channels].

    Returns
    -------
    New down-projections of experts that lost neurons, by their place among those that stay.
    """
    ffn = checkpoint.config.layers[source].ffn
    assert isinstance(ffn, RoutedFfnConfig)
    rows = ExpertRows(ffn)
    tap = TAPS["ffn"]
    for _, _, captured in chunks(dense, read, capture=[tap]):
        rows.add(captured[tap])
    found = {}
    for place, (expert, neurons) in enumerate(zip(kept.experts, kept.neurons, strict=True)):
        _, inputs = rows.of(expert)
        if len(neurons) == ffn.experts[expert] or not len(inputs):
            continue
        name = f"layers.{source}.ffn.experts.{expert}.down"
        moments = Moments(inputs.shape[-1], gram=True, threads=threads)
        moments.update(inputs)
        check_finite(name, moments.sum)
        found[place] = mean_compensation(
            checkpoint.read_f32(f"{name}.weight").astype(np.float64),
            np.asarray(neurons),
            moments.sum / moments.count,
            moments.gram / moments.count,
        )
    return found

"""What flows through each layer of the dense model on calibration text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig, RoutedFfnConfig
from slimformer.engine import Moments
from slimformer.progress import Progress, silent
from slimformer.prune.expert_rows import ExpertRows
from slimformer.prune.importance.pairs import pair_changes
from slimformer.prune.outputs import Output
from slimformer.prune.stream import Hidden, chunks, inverse_lengths, layer_engine

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Moments of a projection's inputs: means over the tokens.

    The inputs of each token are divided by the length of its residual stream after the
    projection's sub-block, so that what units add is relative to what it is added to; and by what
    a norm of the output, or of that stream, divides by.
    """

    mean_square: Array  # [inputs]
    gram: Array | None  # [inputs, inputs], mean of x x'

    def energies(self, weight: npt.NDArray[np.float32]) -> Array:
        """What each column of the projection [outputs, inputs] adds alone, [inputs]."""
        norms = np.einsum("oi,oi->i", weight, weight, dtype=np.float64)
        return np.asarray(self.mean_square * norms)


@dataclasses.dataclass(frozen=True)
class Change:
    """What a layer or sub-block does to the residual stream, mean over the tokens.

    influence: 1 - cosine between the stream before and after (block influence; Men et al.
    2024, ShortGPT, arXiv 2403.03853). relative: squared length of what is added over squared
    length of the stream after.
    """

    influence: float
    relative: float


@dataclasses.dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one layer; inputs are ``None`` where there is no such projection."""

    layer: Change
    attention: Change
    ffn: Change
    heads: Inputs | None  # inputs of the output-projection
    neurons: Inputs | None  # inputs of the down-projection, or of the experts', weighted
    experts: Inputs | None  # lengths of what experts add
    expert_rows: ExpertRows | None  # what each expert's down-projection reads; with Gram matrices
    pairs: Array | None  # what the stream lacks without each rotary pair; where asked for


def layer_statistics(
    checkpoint: Checkpoint,
    hidden: Hidden,
    *,
    first: int = 0,
    inputs: Literal["none", "norms", "grams"],
    pairs: bool = False,
    threads: int = 0,
    progress: Progress = silent,
) -> Iterator[LayerStatistics]:
    """Run calibration text through the model from layer ``first`` on, layer by layer.

    ``hidden`` is the stream [windows, tokens, channels] that enters that layer; whenever a layer
    is done it is the one that leaves it. ``inputs`` says how much to learn of the projections'
    inputs: nothing, the mean squares or the Gram matrices too. All neurons of a layer's experts
    would have too large a one: for each expert its own is made when it is asked for, of its rows.
    ``pairs`` asks for what rotary pairs do.
    """
    n_layers = len(checkpoint.config.layers)
    for index in range(first, n_layers):
        progress("measure layers", index, n_layers)
        # Held by the caller alone: the Gram matrix of a wide layer takes a gigabyte.
        of_pairs = pair_changes(checkpoint, index, hidden, threads=threads) if pairs else None
        yield _pass_layer(checkpoint, index, hidden, inputs, of_pairs, threads)
    progress("measure layers", n_layers, n_layers)


def _pass_layer(
    checkpoint: Checkpoint,
    index: int,
    hidden: Hidden,
    inputs: Literal["none", "norms", "grams"],
    of_pairs: Array | None,
    threads: int,
) -> LayerStatistics:
    """Statistics of one layer; ``hidden`` is moved through it."""
    layer = checkpoint.config.layers[index]
    moments: dict[str, Moments] = {}
    outputs: dict[str, Output] = {}
    gram = inputs == "grams"
    expert_rows = None
    if inputs != "none" and isinstance(layer.attention, AttentionConfig):
        width = layer.attention.n_heads * layer.attention.value_dim
        moments["attention_heads"] = Moments(width, gram=gram, threads=threads)
        outputs["attention_heads"] = Output(checkpoint, index, "attention")
    if inputs != "none" and isinstance(layer.ffn, RoutedFfnConfig):
        moments["ffn_experts"] = Moments(len(layer.ffn.experts), gram=False, threads=threads)
        expert_rows = ExpertRows(layer.ffn) if gram else None
    if inputs != "none" and isinstance(layer.ffn, (FfnConfig, RoutedFfnConfig)):
        ffn_gram = gram and isinstance(layer.ffn, FfnConfig)
        moments["ffn_neurons"] = Moments(layer.ffn.n_neurons, gram=ffn_gram, threads=threads)
        outputs["ffn_neurons"] = Output(checkpoint, index, "ffn")
    engine = layer_engine(checkpoint, index, threads=threads)
    changes = (_ChangeSum(), _ChangeSum(), _ChangeSum())
    taps = ["ffn_input", *moments]
    for rows, after, captured in chunks(engine, hidden, capture=taps):
        between = captured["ffn_input"]
        changes[0].add(hidden[rows], after)
        changes[1].add(hidden[rows], between)
        changes[2].add(between, after)
        for tap, accumulated in moments.items():
            stream = between if tap == "attention_heads" else after
            entered = hidden[rows] if tap == "attention_heads" else between
            read = "ffn_neurons" if tap == "ffn_experts" else tap
            divisors = outputs[read].divisors(entered, captured[read])
            scaled = captured[tap] * (inverse_lengths(stream) / divisors)
            accumulated.update(scaled.reshape(-1, scaled.shape[-1]))
            if tap == "ffn_neurons" and expert_rows is not None:
                expert_rows.add(scaled)
        hidden[rows] = after
    return LayerStatistics(
        changes[0].mean(),
        changes[1].mean(),
        changes[2].mean(),
        _inputs(moments.get("attention_heads"), gram),
        _inputs(moments.get("ffn_neurons"), gram and isinstance(layer.ffn, FfnConfig)),
        _inputs(moments.get("ffn_experts"), gram=False),
        expert_rows,
        of_pairs,
    )


def _inputs(moments: Moments | None, gram: bool) -> Inputs | None:
    if moments is None:
        return None
    products = None
    if gram:
        products = moments.gram
        products /= moments.count
    return Inputs(moments.sum_squares / moments.count, products)


class _ChangeSum:
    """Accumulates ``Change`` over chunks of the stream."""

    def __init__(self) -> None:
        self._tokens = 0
        self._influence = 0.0
        self._relative = 0.0

    def add(self, before: Hidden, after: Hidden) -> None:
        # Overflow is left to show in the sums; whoever uses them says in which layer it was.
        with np.errstate(all="ignore"):
            added = after - before
            square = _dot(after, after)
            lengths = np.sqrt(_dot(before, before) * square)
            cosine = _ratio(_dot(before, after), lengths, 1.0)
            self._tokens += square.size
            self._influence += float(np.sum(1 - cosine))
            self._relative += float(np.sum(_ratio(_dot(added, added), square, 0.0)))

    def mean(self) -> Change:
        return Change(self._influence / self._tokens, self._relative / self._tokens)


def _dot(a: Hidden, b: Hidden) -> Array:
    """Dot product token by token, [windows, tokens]."""
    return np.asarray(np.einsum("wtc,wtc->wt", a, b), dtype=np.float64)


def _ratio(numerator: Array, denominator: Array, empty: float) -> Array:
    """Quotient token by token, ``empty`` where the denominator is 0."""
    result = np.full_like(numerator, empty)
    return np.divide(numerator, denominator, out=result, where=denominator != 0)

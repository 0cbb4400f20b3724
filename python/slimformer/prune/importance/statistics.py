"""What flows through each layer of the dense model on calibration text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig
from slimformer.engine import Moments
from slimformer.progress import Progress, silent
from slimformer.prune.stream import Hidden, Windows, chunks, embed, layer_engine

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Moments of a projection's inputs: means over the tokens."""

    mean: Array  # [inputs]
    mean_square: Array  # [inputs]
    gram: Array | None  # [inputs, inputs], mean of x x'


@dataclasses.dataclass(frozen=True)
class Change:
    """What a layer or sub-block does to the residual stream.

    influence: 1 - cosine between the stream before and after, mean over the tokens (block
    influence; Men et al. 2024, ShortGPT, arXiv 2403.03853). relative: squared length of what
    is added over squared length of the stream after.
    """

    influence: float
    relative: float


@dataclasses.dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one layer; ``None`` where there is no such sub-block.

    attention_energy and ffn_energy are the mean squared length of the residual stream after
    the sub-block, the scale against which an error added there is to be seen.
    """

    layer: Change
    attention: Change
    ffn: Change
    attention_energy: float
    ffn_energy: float
    heads: Inputs | None  # inputs of the output-projection
    neurons: Inputs | None  # inputs of the down-projection


def layer_statistics(
    checkpoint: Checkpoint,
    windows: Windows,
    *,
    gram: bool,
    threads: int = 0,
    progress: Progress = silent,
) -> Iterator[LayerStatistics]:
    """Run calibration windows [windows, tokens] through the model, layer by layer.

    ``gram`` asks for Gram matrices beside means and squares.
    """
    hidden = embed(checkpoint, windows)
    n_layers = len(checkpoint.config.layers)
    for index, layer in enumerate(checkpoint.config.layers):
        progress("measure layers", index, n_layers)
        moments = {}
        if isinstance(layer.attention, AttentionConfig):
            width = layer.attention.n_heads * layer.attention.value_dim
            moments["attention_heads"] = Moments(width, gram=gram, threads=threads)
        if isinstance(layer.ffn, FfnConfig):
            moments["ffn_neurons"] = Moments(layer.ffn.n_neurons, gram=gram, threads=threads)
        engine = layer_engine(checkpoint, index, threads=threads)
        changes = (_ChangeSum(), _ChangeSum(), _ChangeSum())
        for rows, after, captured in chunks(engine, hidden, moments=moments, capture=["ffn_input"]):
            between = captured["ffn_input"]
            changes[0].add(hidden[rows], after)
            changes[1].add(hidden[rows], between)
            changes[2].add(between, after)
            hidden[rows] = after
        yield LayerStatistics(
            changes[0].mean(),
            changes[1].mean(),
            changes[2].mean(),
            changes[1].energy(),
            changes[2].energy(),
            _inputs(moments.get("attention_heads"), gram),
            _inputs(moments.get("ffn_neurons"), gram),
        )
    progress("measure layers", n_layers, n_layers)


def _inputs(moments: Moments | None, gram: bool) -> Inputs | None:
    if moments is None:
        return None
    return Inputs(
        moments.sum / moments.count,
        moments.sum_squares / moments.count,
        moments.gram / moments.count if gram else None,
    )


class _ChangeSum:
    """Accumulates ``Change`` over chunks of the stream."""

    def __init__(self) -> None:
        self._tokens = 0
        self._influence = 0.0
        self._added = 0.0
        self._energy = 0.0

    def add(self, before: Hidden, after: Hidden) -> None:
        # Overflow is left to show in the sums; whoever uses them says in which layer it was.
        with np.errstate(all="ignore"):
            added = after - before
            product = _dot(before, after)
            lengths = np.sqrt(_dot(before, before) * _dot(after, after))
            cosine = np.divide(product, lengths, out=np.ones_like(product), where=lengths > 0)
            self._tokens += product.size
            self._influence += float(np.sum(1 - cosine))
            self._added += float(np.sum(_dot(added, added)))
            self._energy += float(np.sum(_dot(after, after)))

    def mean(self) -> Change:
        relative = self._added / self._energy if self._energy else 0.0
        return Change(self._influence / self._tokens, relative)

    def energy(self) -> float:
        return self._energy / self._tokens


def _dot(a: Hidden, b: Hidden) -> Array:
    """Dot product token by token, [windows, tokens]."""
    return np.asarray(np.einsum("wtc,wtc->wt", a, b), dtype=np.float64)

"""What more zeros cost in nats, measured on the model as it is with its zeros.

A draft has the same share of zeros everywhere. In it all matrices of one kind get more of them, or
all of one layer; by how much that raises the divergence from the predictions of the model without
zeros is what they cost. Taking zeros away instead would tell little: what a matrix has lost, the
others of the draft have partly made up for (shares by such costs lost more than even ones: 1.99
against 1.72 times the perplexity of the demo's model, half of it zero). What a single matrix costs
would be lost in chance.

All streams: the draft and its variants go through the layers side by side, one layer is held at a
time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.progress import Progress, silent
from slimformer.prune.divergence import Predictions
from slimformer.prune.stream import Hidden, Windows, chunks, embed, head_engine, layer_engine
from slimformer.prune.zeros.choice import layer_of, layer_sizes

KINDS = (("q", "k"), ("v",), ("o",), ("gate", "up"), ("down",))
"""Kinds of matrices; what meets in one product is of one."""

PREDICTION_STRIDE = 2
"""The head costs a quarter of a pass; it runs on one token in so many."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Nats a token that more zeros cost, by index in ``KINDS`` and by layer."""

    kinds: tuple[float, ...]
    layers: tuple[float, ...]


def kind_of(name: str) -> int:
    """Index of a matrix's kind, by its name."""
    part = name.split(".")[-2]
    return next(index for index, parts in enumerate(KINDS) if part in parts)


def measure_costs(
    checkpoint: Checkpoint,
    draft: Checkpoint,
    sparser: Checkpoint,
    windows: Windows,
    *,
    threads: int = 0,
    progress: Progress = silent,
) -> Costs:
    """What it costs to go from a draft to a sparser one.

    Parameters
    ----------
    checkpoint, draft, sparser
        The model without zeros, with zeros, and with more of them.
    windows
        Tokens that the draft was not fitted on, [windows, tokens].
    """
    names = list(layer_sizes(checkpoint.config))
    by_kind = [
        _with(draft, sparser, (name for name in names if kind_of(name) == kind))
        for kind in range(len(KINDS))
    ]
    whole = embed(checkpoint, windows)
    kinds = [whole] * len(KINDS)
    drafts = whole[None]  # [1 + layers so far, windows, tokens, channels], the draft's first
    n_layers = len(checkpoint.config.layers)
    for index in range(n_layers):
        progress("price zeros", index, n_layers)
        own = (name for name in names if layer_of(name) == index)
        fresh = _pass(_with(draft, sparser, own), index, drafts[0], threads)
        whole = _pass(checkpoint, index, whole, threads)
        kinds = [
            _pass(variant, index, stream, threads)
            for variant, stream in zip(by_kind, kinds, strict=True)
        ]
        moved = _pass(draft, index, drafts.reshape(-1, *whole.shape[1:]), threads)
        drafts = np.concatenate([moved.reshape(drafts.shape), fresh[None]])
    engine = head_engine(checkpoint, threads=threads)

    def logits(stream: Hidden) -> Hidden:
        rows = stream.reshape(-1, stream.shape[-1])[::PREDICTION_STRIDE]
        return engine.logits(np.ascontiguousarray(rows))

    predictions = Predictions(logits(whole))
    of_draft, *of_layers = (predictions.divergence(logits(stream)) for stream in drafts)
    of_kinds = [predictions.divergence(logits(stream)) for stream in kinds]
    progress("price zeros", n_layers, n_layers)
    return Costs(
        tuple(other - of_draft for other in of_kinds),
        tuple(other - of_draft for other in of_layers),
    )


def _with(draft: Checkpoint, other: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """The draft with some matrices of another model."""
    taken = {name: other.tensors[name] for name in names}
    return dataclasses.replace(draft, tensors={**draft.tensors, **taken})


def _pass(checkpoint: Checkpoint, index: int, stream: Hidden, threads: int) -> Hidden:
    engine = layer_engine(checkpoint, index, threads=threads)
    return np.concatenate([after for _, after, _ in chunks(engine, stream)])

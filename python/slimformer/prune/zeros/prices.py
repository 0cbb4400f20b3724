"""What zeros in each matrix cost in nats, measured on the model as it is with its zeros.

A draft has the same share of zeros everywhere. In it some matrices at a time, those that work
together, become what they were; by how much that lowers the divergence from the predictions of
the model without zeros is what their zeros cost. Everything streams: the draft and all its
variants go through the layers side by side, one layer is held at a time.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.progress import Progress, silent
from slimformer.prune.divergence import Predictions
from slimformer.prune.stream import Hidden, Windows, chunks, embed, head_engine, layer_engine
from slimformer.prune.zeros.choice import layer_of, layer_sizes

Group = tuple[str, ...]

TOGETHER = (("q", "k"), ("v",), ("o",), ("gate", "up"), ("down",))
"""Matrices whose zeros are priced together: they meet in one product, or stand alone."""

PREDICTION_STRIDE = 2
"""The head costs a quarter of a pass; it runs on one token in so many."""


def groups(checkpoint: Checkpoint, index: int) -> list[Group]:
    """The matrices of a layer that are priced together."""
    names = [name for name in layer_sizes(checkpoint.config) if layer_of(name) == index]
    found = [tuple(name for name in names if name.split(".")[-2] in parts) for parts in TOGETHER]
    return [group for group in found if group]


def measure_costs(
    checkpoint: Checkpoint,
    draft: Checkpoint,
    windows: Windows,
    *,
    threads: int = 0,
    progress: Progress = silent,
) -> dict[Group, float]:
    """Nats a token that the zeros of the draft cost, by the matrices that have them.

    Parameters
    ----------
    checkpoint, draft
        The model without and with zeros.
    windows
        Tokens that the draft was not fitted on, [windows, tokens].
    """
    whole = embed(checkpoint, windows)
    streams = whole[None].copy()  # [variants, windows, tokens, channels], the draft's first
    variants: list[Group] = []
    n_layers = len(checkpoint.config.layers)
    for index in range(n_layers):
        progress("price zeros", index, n_layers)
        fresh = []
        for group in groups(checkpoint, index):
            restored = {**draft.tensors, **{name: checkpoint.tensors[name] for name in group}}
            variant = dataclasses.replace(draft, tensors=restored)
            fresh.append(_pass(variant, index, streams[0], threads))
            variants.append(group)
        whole = _pass(checkpoint, index, whole, threads)
        moved = _pass(draft, index, streams.reshape(-1, *streams.shape[2:]), threads)
        streams = np.concatenate([moved.reshape(streams.shape), *(one[None] for one in fresh)])
    engine = head_engine(checkpoint, threads=threads)

    def logits(stream: Hidden) -> Hidden:
        rows = stream.reshape(-1, stream.shape[-1])[::PREDICTION_STRIDE]
        return engine.logits(np.ascontiguousarray(rows))

    predictions = Predictions(logits(whole))
    drafted, *others = (predictions.divergence(logits(stream)) for stream in streams)
    progress("price zeros", n_layers, n_layers)
    return {group: drafted - other for group, other in zip(variants, others, strict=True)}


def _pass(checkpoint: Checkpoint, index: int, stream: Hidden, threads: int) -> Hidden:
    engine = layer_engine(checkpoint, index, threads=threads)
    return np.concatenate([after for _, after, _ in chunks(engine, stream)])

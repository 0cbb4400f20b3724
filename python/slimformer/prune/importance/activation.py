"""Activation norm: a unit costs the energy that it adds to the residual stream."""

from __future__ import annotations

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig, RoutedFfnConfig
from slimformer.prune.importance.scores import LayerScores, sum_groups
from slimformer.prune.importance.statistics import LayerStatistics
from slimformer.prune.outputs import Output


def score(checkpoint: Checkpoint, index: int, statistics: LayerStatistics) -> LayerScores:
    """Rate every structure of one layer by its share of the residual stream's energy.

    Column j of a projection W adds ``E[x_j^2] |W_j|^2`` (Wanda's product of activation and
    weight norm, Sun et al. 2023, arXiv 2306.11695, summed over a structure); a head adds that
    of its columns, a sub-block what it adds in fact, and a rotary pair what is another without it.
    All are relative to the energy of the stream that they are added to, so that layers compare.

    An expert adds the mean over all tokens of ``|p f(x)|^2`` for its output f(x) and its
    probability p, 0 where it does not run: how often it runs times how much it then does, as the
    expert pruning of Lasby et al. 2025 (REAP, arXiv 2510.13999) rates it, but squared.
    """
    layer = checkpoint.config.layers[index]
    heads = groups = values = neurons = experts = None
    if isinstance(layer.attention, AttentionConfig):
        assert statistics.heads is not None
        columns = statistics.heads.energies(Output(checkpoint, index, "attention").stream_weight)
        by_head = columns.reshape(layer.attention.n_heads, -1)
        heads, values = by_head.sum(axis=1), by_head.sum(axis=0)
        groups = sum_groups(layer.attention, heads)
    if isinstance(layer.ffn, RoutedFfnConfig):
        assert statistics.experts is not None
        experts = statistics.experts.mean_square
    if isinstance(layer.ffn, (FfnConfig, RoutedFfnConfig)):
        assert statistics.neurons is not None
        neurons = statistics.neurons.energies(Output(checkpoint, index, "ffn").stream_weight)
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

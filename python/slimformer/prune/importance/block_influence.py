"""Block influence: a layer or sub-block costs the angle by which it turns the residual stream."""

from __future__ import annotations

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.prune.importance.scores import LayerScores
from slimformer.prune.importance.statistics import LayerStatistics


def score(checkpoint: Checkpoint, index: int, statistics: LayerStatistics) -> LayerScores:
    """Rate one layer and its sub-blocks by ``1 - cos(before, after)``.

    Men et al. 2024, ShortGPT, arXiv 2403.03853; for sub-blocks He et al. 2024, arXiv
    2406.15786.
    """
    layer = checkpoint.config.layers[index]
    return LayerScores(
        layers=statistics.layer.influence,
        attention=None if layer.attention is None else statistics.attention.influence,
        ffn=None if layer.ffn is None else statistics.ffn.influence,
    )

"""Greedy loss: remove, again and again, the block whose loss on calibration text is lowest.

Song et al. 2024, SLEB, arXiv 2402.09025, for layers; Zhong et al. 2024, BlockPruner, arXiv
2406.10594, for sub-blocks.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig
from slimformer.engine import Engine, Mask
from slimformer.progress import Progress, silent
from slimformer.prune.budget import Budget
from slimformer.prune.importance.scores import LayerScores, Scores
from slimformer.prune.remainder import whole
from slimformer.prune.stream import Windows
from slimformer.prune.structures import Structure

Part = tuple[int, Literal["attention", "ffn"]]
Block = tuple[int, Structure]
"""A layer, and whether all of it, its attention or its FFN."""


def score_model(
    checkpoint: Checkpoint,
    windows: Windows,
    budget: Budget,
    *,
    structures: tuple[Structure, ...],
    protect: frozenset[int],
    threads: int = 0,
    progress: Progress = silent,
) -> Scores:
    """Rate layers and sub-blocks by the loss (nats a token) that their removal adds.

    Each round tries every block that is left on top of those already removed and removes the
    one that adds least loss for its weight, until the budget is met. A block's score is what
    it added in its round, or in the last one if it stayed; scores per weight never fall from
    round to round, so that ranking by them gives the greedy order.
    """
    engine = Engine(checkpoint, threads=threads)
    n_layers = len(checkpoint.config.layers)
    prices = _part_prices(checkpoint, budget)
    blocks = _blocks(prices, structures, protect)
    scores: dict[Block, float] = {}
    gone: frozenset[Part] = frozenset()
    loss = _loss(engine, windows, gone)
    reached = -float("inf")
    while budget.fixed + sum(prices[part] for part in prices.keys() - gone) > budget.limit:
        left = {block: parts for block, parts in blocks.items() if parts - gone}
        if not left:
            break
        ratios = {}
        for tried, (block, parts) in enumerate(left.items()):
            progress(f"try blocks, round {len(gone) + 1}", tried, len(left))
            added = _loss(engine, windows, gone | parts) - loss
            ratios[block] = added / sum(prices[part] for part in parts - gone)
        chosen = min(left, key=lambda block: ratios[block])
        reached = max(reached, ratios[chosen])
        for block in left:
            weight = sum(prices[part] for part in blocks[block])
            scores[block] = max(reached, ratios[block]) * weight
        loss += ratios[chosen] * sum(prices[part] for part in blocks[chosen] - gone)
        gone |= blocks[chosen]
    return tuple(
        LayerScores(
            layers=scores.get((index, "layers")),
            attention=scores.get((index, "attention")),
            ffn=scores.get((index, "ffn")),
        )
        for index in range(n_layers)
    )


def _part_prices(checkpoint: Checkpoint, budget: Budget) -> dict[Part, int]:
    """Weight of each sub-block."""
    prices: dict[Part, int] = {}
    for index, layer in enumerate(checkpoint.config.layers):
        all_of_it = whole(checkpoint.config, index)
        price = budget.price(checkpoint.config, index)
        kv_heads = 0
        if isinstance(layer.attention, AttentionConfig):
            kv_heads = layer.attention.n_kv_heads
        heads, neurons = len(all_of_it.heads or ()), all_of_it.neurons or 0
        if layer.attention is not None:
            prices[index, "attention"] = price.of(heads, kv_heads, 0, attention=True, ffn=False)
        if layer.ffn is not None:
            prices[index, "ffn"] = price.of(0, 0, neurons, attention=False, ffn=True)
    return prices


def _blocks(
    prices: dict[Part, int], structures: tuple[Structure, ...], protect: frozenset[int]
) -> dict[Block, frozenset[Part]]:
    """The blocks that may go, each with the sub-blocks it consists of."""
    blocks: dict[Block, frozenset[Part]] = {}
    for index, sub_block in prices:
        if index not in protect:
            if sub_block in structures:
                blocks[index, sub_block] = frozenset({(index, sub_block)})
            if "layers" in structures:
                both = blocks.get((index, "layers"), frozenset())
                blocks[index, "layers"] = both | {(index, sub_block)}
    return blocks


def _loss(engine: Engine, windows: Windows, gone: frozenset[Part]) -> float:
    """Mean negative log-likelihood of the windows' tokens without those sub-blocks."""
    mask = Mask(
        skip_attention=tuple(sorted(index for index, part in gone if part == "attention")),
        skip_ffn=tuple(sorted(index for index, part in gone if part == "ffn")),
    )
    scores = engine.score(list(windows), mask=mask)
    return -float(np.mean(np.concatenate(scores), dtype=np.float64))

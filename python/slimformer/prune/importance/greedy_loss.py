"""Greedy loss: remove, again and again, the block whose loss on calibration text is lowest.

Song et al. 2024, SLEB, arXiv 2402.09025, for layers; Zhong et al. 2024, BlockPruner, arXiv
2406.10594, for sub-blocks. Experts are blocks like these.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, LayerConfig, ModelConfig, RoutedFfnConfig
from slimformer.engine import Engine, Mask
from slimformer.progress import Progress, silent
from slimformer.prune.budget import Budget
from slimformer.prune.importance.scores import LayerScores, Scores
from slimformer.prune.remainder import whole
from slimformer.prune.stream import Hidden, Windows, precision
from slimformer.prune.structures import Structure

Part = tuple[int, Literal["attention", "ffn"], int | None]
"""A layer, one of its sub-blocks, and an expert of that; ``None`` for what is none."""

Block = tuple[int, Structure, int | None]
"""A layer, what of it goes, and which of several."""


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
    """Rate layers, sub-blocks and experts by the loss (nats a token) that their removal adds.

    Each round tries every block that is left on top of those already removed and removes the
    one that adds least loss for its weight, until the budget is met. A block's score is what
    it added in its round, or in the last one if it stayed; scores per weight never fall from
    round to round, so that ranking by them gives the greedy order.
    """
    trials = _Trials(Engine(checkpoint, weights=precision(checkpoint), threads=threads), windows)
    prices = _part_prices(checkpoint, budget)
    blocks = _blocks(prices, structures, protect)
    scores: dict[Block, float] = {}
    gone: frozenset[Part] = frozenset()
    loss = trials.loss(gone)
    reached = -float("inf")
    while budget.fixed + sum(prices[part] for part in prices.keys() - gone) > budget.limit:
        left = {
            block: parts
            for block, parts in blocks.items()
            if parts - gone and _leaves_an_expert(block, gone, checkpoint.config)
        }
        if not left:
            break
        ratios = {}
        trials.start(gone)
        for tried, (block, parts) in enumerate(left.items()):
            progress(f"try blocks, round {len(gone) + 1}", tried, len(left))
            added = trials.loss(gone | parts, first=block[0]) - loss
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
            layers=scores.get((index, "layers", None)),
            attention=scores.get((index, "attention", None)),
            ffn=scores.get((index, "ffn", None)),
            experts=_of_experts(scores, index, layer),
        )
        for index, layer in enumerate(checkpoint.config.layers)
    )


def _of_experts(
    scores: dict[Block, float], index: int, layer: LayerConfig
) -> npt.NDArray[np.float64] | None:
    """What each expert costs, where all are rated; one that no budget could ask for is dearest."""
    if not isinstance(layer.ffn, RoutedFfnConfig):
        return None
    found = [scores.get((index, "experts", expert)) for expert in range(len(layer.ffn.experts))]
    rated = [cost for cost in found if cost is not None]
    if not rated:
        return None
    return np.array([max(rated) if cost is None else cost for cost in found])


def _part_prices(checkpoint: Checkpoint, budget: Budget) -> dict[Part, int]:
    """Weight of each sub-block, that of routed FFNs expert by expert."""
    prices: dict[Part, int] = {}
    for index, layer in enumerate(checkpoint.config.layers):
        all_of_it = whole(checkpoint.config, index)
        price = budget.price(checkpoint.config, index)
        kv_heads = 0
        if isinstance(layer.attention, AttentionConfig):
            kv_heads = layer.attention.n_kv_heads
        heads, neurons = len(all_of_it.heads or ()), all_of_it.neurons or 0
        if layer.attention is not None:
            whole_attention = price.of(heads, kv_heads, 0, attention=True, ffn=False)
            prices[index, "attention", None] = whole_attention
        if isinstance(layer.ffn, RoutedFfnConfig):
            prices[index, "ffn", None] = price.of(0, 0, 0, attention=False, ffn=True)
            for expert, width in enumerate(layer.ffn.experts):
                with_it = price.of(0, 0, width, attention=False, ffn=True, experts=1)
                prices[index, "ffn", expert] = with_it - prices[index, "ffn", None]
        elif layer.ffn is not None:
            prices[index, "ffn", None] = price.of(0, 0, neurons, attention=False, ffn=True)
    return prices


def _blocks(
    prices: dict[Part, int], structures: tuple[Structure, ...], protect: frozenset[int]
) -> dict[Block, frozenset[Part]]:
    """The blocks that may go, each with the parts that it consists of."""
    blocks: dict[Block, frozenset[Part]] = {}
    for part in prices:
        index, sub_block, expert = part
        if index in protect:
            continue
        owners: list[Block] = [(index, sub_block, None), (index, "layers", None)]
        if expert is not None:
            owners.append((index, "experts", expert))
        for block in owners:
            if block[1] in structures:
                blocks[block] = blocks.get(block, frozenset()) | {part}
    return blocks


def _leaves_an_expert(block: Block, gone: frozenset[Part], config: ModelConfig) -> bool:
    """Whether a routed FFN of which an expert goes keeps another."""
    index, structure, expert = block
    ffn = config.layers[index].ffn
    if structure != "experts" or not isinstance(ffn, RoutedFfnConfig):
        return True
    others = set(range(len(ffn.experts))) - {expert}
    return bool({(index, "ffn", other) for other in others} - gone)


class _Trials:
    """The loss of some text without parts of the model, tried from the first layers to the last.

    Layers before the one that is tried are run once in a round: the text waits behind them.
    """

    def __init__(self, engine: Engine, windows: Windows) -> None:
        self._engine = engine
        self._lengths = [windows.shape[1]] * len(windows)
        self._embedded = engine.embed(windows.reshape(-1), self._lengths)
        self._targets = windows[:, 1:].reshape(-1)
        self.start(frozenset())

    def start(self, gone: frozenset[Part]) -> None:
        """Begin a round, in which those parts are gone."""
        self._gone = gone
        self._stream, self._reached = self._embedded, 0

    def loss(self, gone: frozenset[Part], *, first: int = 0) -> float:
        """Mean negative log-likelihood of the text's tokens without those parts.

        Up to layer ``first`` they are those of the round; it never falls within one.
        """
        self._stream = self._run(self._stream, self._reached, first, self._gone)
        self._reached = first
        hidden = self._run(self._stream, first, len(self._engine.config.layers), gone)
        shape = (len(self._lengths), self._lengths[0], -1)
        places = hidden.reshape(shape)[:, :-1].reshape(len(self._targets), -1)
        scores = self._engine.score_hidden(places, self._targets)
        return -float(np.mean(scores, dtype=np.float64))

    def _run(self, stream: Hidden, first: int, last: int, gone: frozenset[Part]) -> Hidden:
        if first == last:
            return stream
        mask = _mask(self._engine.config, gone)
        return self._engine.run_layers(stream, self._lengths, first=first, last=last, mask=mask)[0]


def _mask(config: ModelConfig, gone: frozenset[Part]) -> Mask:
    """What skips those parts."""

    def skipped(sub_block: str) -> tuple[int, ...]:
        return tuple(sorted(i for i, part, expert in gone if part == sub_block and expert is None))

    skip_ffn = skipped("ffn")
    experts: dict[int, tuple[int, ...]] = {}
    for index in {i for i, _, expert in gone if expert is not None} - set(skip_ffn):
        ffn = config.layers[index].ffn
        assert isinstance(ffn, RoutedFfnConfig)
        every = range(len(ffn.experts))
        experts[index] = tuple(e for e in every if (index, "ffn", e) not in gone)
    return Mask(skip_attention=skipped("attention"), skip_ffn=skip_ffn, experts=experts)

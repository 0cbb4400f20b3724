"""What an error in each sub-block costs in nats, measured on the model as it is once pruned.

``obs`` rates a unit by the error that stays in the residual stream, as a share of its energy. What
such an error does to the predictions differs between sub-blocks. In an intact model the others
make up for much of it, which they no longer do when they are pruned as well; so a draft of the
pruned model is made first, and in each of its sub-blocks in turn units go or come back. What that
does to the divergence from the dense model's predictions is the price of the error.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import numpy as np

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import ModelConfig
from slimformer.errors import BudgetError
from slimformer.progress import Progress, silent
from slimformer.prune.allocate import UNIT_STRUCTURES, allocate
from slimformer.prune.budget import Budget
from slimformer.prune.drafts import TRIAL_WINDOW, Draft, Part, Walk
from slimformer.prune.importance.scores import LayerScores, Scores
from slimformer.prune.journal import Journal
from slimformer.prune.outputs import SUB_BLOCKS, SubBlock
from slimformer.prune.recipe import HEAD_PARTS, KeptLayer, keep_all
from slimformer.prune.stream import Windows
from slimformer.prune.structures import Structure
from slimformer.prune.windows import split

Prices = Mapping[Part, float]
"""Nats for each unit of error, by sub-block."""

TRIAL_SHARE = 0.125
"""Share of the windows that predictions are compared on; variants are fitted on the others."""

TRUST = 0.5
"""Weight of a measured price against the usual one, on a scale of ratios. The units of a sub-block
cost so much the same that an allocator puts everything where prices are too low."""

LOWEST = 0.2
"""Prices below this share of the usual one are chance."""

SPREAD = (0.05, 0.1, 0.2, 0.3, 0.2, 0.1, 0.05)
"""What the prices of a layer and of three on either side of it weigh in its own. Measured on other
text, those of some layers differ fivefold, while what there is to measure changes little from one
layer to the next. An allocation that believes each of them takes what is cheap by chance: at 0.7 of
the demo's model drafts diverge by 0.82 and 0.83 nats with two such measurements, by 0.75 and 0.75
if they are smoothed."""


def in_nats(scores: Scores, prices: Prices) -> Scores:
    """Scores of units and sub-blocks, from errors to nats.

    Parameters
    ----------
    scores
        Errors, as ``obs`` rates them.
    prices
        Nats for each unit of error; 1 where a sub-block has none.
    """
    priced = []
    for index, rated in enumerate(scores):
        attention = prices.get((index, "attention"), 1.0)
        ffn = prices.get((index, "ffn"), 1.0)
        whole = [
            None if rated.attention is None else rated.attention * attention,
            None if rated.ffn is None else rated.ffn * ffn,
        ]
        priced.append(
            LayerScores(
                None if whole == [None, None] else sum(cost or 0.0 for cost in whole),
                whole[0],
                whole[1],
                None if rated.kv_groups is None else rated.kv_groups * attention,
                None if rated.heads is None else rated.heads * attention,
                None if rated.neurons is None else rated.neurons * ffn,
                None if rated.experts is None else rated.experts * ffn,
                **{
                    part: None if costs is None else costs * attention
                    for part in HEAD_PARTS
                    for costs in (rated.part(part),)
                },
            )
        )
    return tuple(priced)


def draft_of(
    config: ModelConfig,
    scores: Scores,
    budget: Budget,
    structures: tuple[Structure, ...],
    protect: frozenset[int],
) -> tuple[KeptLayer, ...]:
    """What stays if every unprotected layer loses the same share; all, if that is not enough."""
    units = tuple(one for one in structures if one in UNIT_STRUCTURES)
    if units:
        with contextlib.suppress(BudgetError):
            return allocate(
                config,
                scores,
                budget,
                structures=units,
                allocation="uniform",
                protect=protect,
            )
    return tuple(keep_all(index, layer) for index, layer in enumerate(config.layers))


def measure_prices(
    checkpoint: Checkpoint,
    scores: Scores,
    draft: Draft,
    windows: Windows,
    *,
    structures: tuple[Structure, ...],
    journal: Journal | None = None,
    threads: int = 0,
    progress: Progress = silent,
) -> dict[Part, float]:
    """Nats a token for each unit of error, by sub-block.

    Parameters
    ----------
    scores
        Errors, as ``obs`` rates them.
    draft
        What is kept of each layer in about the model that is to come. Sub-blocks that it lacks
        get no price.
    windows
        Calibration tokens, [windows, tokens].
    structures
        What may go: sub-blocks that lose nothing need no price.
    journal
        Where finished layers are written down; those that are there already are not done again.
    """
    fit, trial = split(windows, TRIAL_SHARE, length=TRIAL_WINDOW)
    walk = Walk(
        checkpoint,
        scores,
        [draft],
        fit,
        trial,
        varied=_sub_blocks(structures),
        threads=threads,
    )
    found = walk.run(journal, "price layers", progress)
    products: dict[Part, float] = {}
    squares: dict[Part, float] = {}
    for part, error, divergence in found.variants:
        products[part] = products.get(part, 0.0) + error * (divergence - found.drafts[0])
        squares[part] = squares.get(part, 0.0) + error * error
    return {part: products[part] / squares[part] for part in products if squares[part] > 0}


def smooth(measured: Prices) -> dict[Part, float]:
    """Measured prices, each a mean over the layers around it, on a scale of ratios."""
    lowest = LOWEST * (_usual(measured) or 1.0)
    logs = {part: math.log(max(price, lowest)) for part, price in measured.items()}
    reach = len(SPREAD) // 2

    def near(part: Part) -> float:
        index, sub_block = part
        around = [(index + step, sub_block) for step in range(-reach, reach + 1)]
        weights = [
            (weight, logs[other])
            for weight, other in zip(SPREAD, around, strict=True)
            if other in logs
        ]
        return math.exp(sum(w * log for w, log in weights) / sum(w for w, _ in weights))

    return {part: near(part) for part in measured}


def temper(measured: Prices) -> dict[Part, float]:
    """Measured prices drawn towards what is usual among them."""
    return towards(dict.fromkeys(measured, _usual(measured) or 1.0), measured, TRUST)


def towards(prices: Prices, measured: Prices, share: float) -> dict[Part, float]:
    """Prices moved by a ``share`` of the way to measured ones, on a scale of ratios.

    Both count relative to what is usual among them. What was not measured stays as it is.
    """
    level, usual = _usual(prices), _usual(measured)
    if level is None or usual is None:
        return dict(prices)
    return {
        part: level
        * (price / level) ** (1 - share)
        * max(measured.get(part, price / level * usual) / usual, LOWEST) ** share
        for part, price in prices.items()
    }


def _usual(prices: Prices) -> float | None:
    positive = [price for price in prices.values() if price > 0]
    return float(np.median(positive)) if positive else None


def _sub_blocks(structures: tuple[Structure, ...]) -> frozenset[SubBlock]:
    """The sub-blocks that lose something when these structures go."""
    owners: dict[SubBlock, tuple[Structure, ...]] = {
        "attention": ("layers", "attention", "kv_groups", "heads", *HEAD_PARTS),
        "ffn": ("layers", "ffn", "experts", "neurons"),
    }
    return frozenset(one for one in SUB_BLOCKS if set(owners[one]) & set(structures))

"""What an error in each sub-block costs in nats, measured on the model as it is once pruned.

``obs`` rates a unit by the error that stays in the residual stream, as a share of its energy. What
such an error does to the predictions differs between sub-blocks. In an intact model the others
make up for much of it, which they no longer do when they are pruned as well; so a draft of the
pruned model is made first, and in each of its sub-blocks in turn units go or come back. What that
does to the divergence from the dense model's predictions is the price of the error.

Everything streams: the draft and all its variants go through the layers side by side, one layer
is held at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig, LinkConfig, ModelConfig
from slimformer.engine import Engine, Moments
from slimformer.errors import BudgetError
from slimformer.progress import Progress, silent
from slimformer.prune.allocate import UNIT_STRUCTURES, allocate
from slimformer.prune.budget import Budget
from slimformer.prune.divergence import Predictions
from slimformer.prune.importance.scores import LayerScores, Scores
from slimformer.prune.journal import Journal
from slimformer.prune.outputs import PROJECTIONS, SUB_BLOCKS, Output, SubBlock
from slimformer.prune.recipe import KeptAttention, KeptFfn, KeptLayer, keep_all
from slimformer.prune.refit import Evidence, least_squares
from slimformer.prune.stream import (
    TAPS,
    Hidden,
    Windows,
    chunks,
    embed,
    head_engine,
    inverse_lengths,
    layer_engine,
    precision,
)
from slimformer.prune.structures import Structure
from slimformer.prune.surgery import unit_entries

Array = npt.NDArray[np.float64]
Columns = npt.NDArray[np.intp]

TRIAL_SHARE = 0.125
"""Share of the windows that predictions are compared on; variants are fitted on the others."""

TRIAL_WINDOW = 256
"""Tokens in a window of them: shorter windows hold more different text."""

PREDICTION_STRIDE = 2
"""The head costs a quarter of a pass; it runs on one token in so many."""

STEP = 0.25
"""Share of a sub-block's units that go in a variant, on top of those that the draft lacks."""

DAMPINGS = (0.3, 3.0)
"""For the output of what went and for the drift; see ``slimformer.prune.repair``."""

TRUST = 0.5
"""Weight of a measured price against the usual one, on a scale of ratios. A price from a thousand
tokens is wrong by a factor of about 1.5, and prices differ by hardly more; the units of a sub-block
cost so much the same that an allocator puts everything where prices are too low. On the model of
the demo the divergence is 0.55 after an even cut, 0.49 if prices are believed, 0.45 if by half."""

LOWEST = 0.2
"""Prices below this share of the usual one are chance."""

Part = tuple[int, SubBlock]


def in_nats(scores: Scores, prices: Mapping[Part, float]) -> Scores:
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
    draft: Sequence[KeptLayer],
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
        What is kept of each layer in about the model that is to come; no sub-block is missing.
    windows
        Calibration tokens, [windows, tokens].
    structures
        What may go: sub-blocks that lose nothing need no price.
    journal
        Where finished layers are written down; those that are there already are not done again.
    """
    fit, trial = _split(windows)
    walk = _Walk(checkpoint, scores, fit, trial, _sub_blocks(structures), threads)
    for index in range(walk.resume(journal), len(draft)):
        progress("price layers", index, len(draft))
        walk.layer(index, draft[index])
        if journal is not None:
            journal.record(index, {}, walk.standing())
    found = walk.prices()
    progress("price layers", len(draft), len(draft))
    return found


def temper(prices: Mapping[Part, float]) -> dict[Part, float]:
    """Measured prices drawn towards what is usual among them."""
    positive = [price for price in prices.values() if price > 0]
    if not positive:
        return dict.fromkeys(prices, 1.0)
    usual = float(np.median(positive))
    return {part: usual * (max(price / usual, LOWEST)) ** TRUST for part, price in prices.items()}


def _sub_blocks(structures: tuple[Structure, ...]) -> frozenset[SubBlock]:
    """The sub-blocks that lose something when these structures go."""
    owners: dict[SubBlock, tuple[Structure, ...]] = {
        "attention": ("layers", "attention", "kv_groups", "heads"),
        "ffn": ("layers", "ffn", "neurons"),
    }
    return frozenset(one for one in SUB_BLOCKS if set(owners[one]) & set(structures))


def _split(windows: Windows) -> tuple[Windows, Windows]:
    """Windows to fit variants on, and short ones to compare predictions on."""
    count, tokens = windows.shape
    if count == 1:
        return windows[:, : -(-tokens // 2)], windows[:, tokens // 2 :]
    trials = max(1, round(TRIAL_SHARE * count))
    length = min(tokens, TRIAL_WINDOW)
    pieces = windows[count - trials :, : tokens // length * length].reshape(-1, length)
    return windows[: count - trials], pieces


@dataclasses.dataclass(frozen=True)
class _Variant:
    """The columns of a projection that stay, and the error of what goes."""

    columns: Columns
    error: float


class _Walk:
    """The dense model, the draft and its variants on their way through the layers."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        scores: Scores,
        fit: Windows,
        trial: Windows,
        priced: frozenset[SubBlock],
        threads: int,
    ) -> None:
        self._checkpoint = checkpoint
        self._scores = scores
        self._priced = priced
        self._threads = threads
        self._target = embed(checkpoint, fit)  # the dense stream
        self._stream = self._target.copy()  # the draft's
        self._dense = embed(checkpoint, trial)
        # [variants, windows, tokens, channels]; the draft itself is the first.
        self._trials = self._dense[None].copy()
        # What sub-blocks read: the streams as they grow, or as they entered a parallel layer.
        self._read, self._read_trials = self._stream, self._trials
        self._variants: list[tuple[Part, float]] = []

    def resume(self, journal: Journal | None) -> int:
        """Go on where a journal ends; the first layer that is left to do."""
        found = None if journal is None else journal.resume()
        if found is None:
            return 0
        last, _, standing = found
        self._target, self._stream, self._dense, self._trials = (
            standing[name].read().copy() for name in ("target", "stream", "dense", "trials")
        )
        variants = standing["variants"].read().view(np.float64).reshape(-1, 3)
        self._variants = [
            ((int(index), SUB_BLOCKS[int(sub_block)]), float(error))
            for index, sub_block, error in variants
        ]
        return last + 1

    def standing(self) -> dict[str, npt.NDArray[np.float32]]:
        """What is needed to go on, as a journal keeps it."""
        variants = [
            (index, SUB_BLOCKS.index(sub_block), error)
            for (index, sub_block), error in self._variants
        ]
        return {
            "target": self._target,
            "stream": self._stream,
            "dense": self._dense,
            "trials": self._trials,
            "variants": np.asarray(variants, np.float64).reshape(-1).view(np.float32),
        }

    def layer(self, index: int, kept: KeptLayer) -> None:
        """Take all streams through a layer, of which the draft keeps ``kept``."""
        between = np.empty_like(self._target)
        engine = layer_engine(self._checkpoint, index, threads=self._threads)
        for rows, after, captured in chunks(engine, self._target, capture=["ffn_input"]):
            between[rows] = captured["ffn_input"]
            self._target[rows] = after
        self._dense = _pass(engine, self._dense, self._dense)
        layer = self._checkpoint.config.layers[index]
        self._read, self._read_trials = self._stream, self._trials
        if layer.parallel:
            self._read, self._read_trials = self._stream.copy(), self._trials.copy()
        for sub_block in SUB_BLOCKS:
            part = getattr(layer, sub_block)
            if isinstance(part, LinkConfig):
                engine = self._engine(self._checkpoint, index, sub_block)
                self._stream = _pass(engine, self._stream, self._read)
                self._trials = _pass(engine, self._trials, self._read_trials)
            elif part is not None:
                wanted = between if sub_block == "attention" else self._target
                variants = _variants(part, kept, self._scores[index], sub_block)
                if sub_block not in self._priced:
                    del variants[1:]
                self._sub_block(index, sub_block, wanted, variants)
            if not layer.parallel:
                self._read, self._read_trials = self._stream, self._trials

    def prices(self) -> dict[Part, float]:
        """Slope of divergence over error for each sub-block that has variants."""
        engine = head_engine(self._checkpoint, threads=self._threads)

        def logits(stream: Hidden) -> Hidden:
            rows = stream.reshape(-1, stream.shape[-1])[::PREDICTION_STRIDE]
            return engine.logits(np.ascontiguousarray(rows))

        predictions = Predictions(logits(self._dense))
        draft, *others = (predictions.divergence(logits(trial)) for trial in self._trials)
        products: dict[Part, float] = {}
        squares: dict[Part, float] = {}
        for (part, error), divergence in zip(self._variants, others, strict=True):
            products[part] = products.get(part, 0.0) + error * (divergence - draft)
            squares[part] = squares.get(part, 0.0) + error * error
        return {part: products[part] / squares[part] for part in products if squares[part] > 0}

    def _sub_block(
        self, index: int, sub_block: SubBlock, wanted: Hidden, variants: list[_Variant]
    ) -> None:
        """Fit the draft of a sub-block and its variants, and move the streams on."""
        tap = TAPS[sub_block]
        output = Output(self._checkpoint, index, sub_block)
        channels, width = output.weight.shape
        moments = Moments(
            width,
            target_width=channels,
            products=precision(self._checkpoint),
            threads=self._threads,
        )
        engine = self._engine(self._checkpoint, index, sub_block)
        inputs = np.empty((*self._stream.shape[:2], width), np.float32)
        for rows, after, captured in chunks(engine, self._read, capture=[tap]):
            inputs[rows] = captured[tap]
            drift = wanted[rows] - _onto(self._stream[rows], self._read[rows], after)
            scale = inverse_lengths(wanted[rows])
            divisors = output.divisors(self._stream[rows], inputs[rows])
            moments.update(
                (inputs[rows] * (scale / divisors)).reshape(-1, width),
                (drift * scale).reshape(-1, channels),
            )
        read = self._read_trials[0]
        seen = [captured[tap] for _, _, captured in chunks(engine, read, capture=[tap])]
        trial_inputs = np.concatenate(seen)
        gram, cross = moments.gram, moments.cross
        fitted = [_fit(gram, cross, output, variant.columns) for variant in variants]
        ends = np.stack(
            [
                output.after(self._trials[0], trial_inputs[..., variant.columns], new)
                for variant, new in zip(variants, fitted, strict=True)
            ]
        )
        kept = variants[0].columns
        self._stream = output.after(self._stream, inputs[..., kept], fitted[0])
        drafted = np.zeros_like(output.weight)
        drafted[:, kept] = fitted[0]
        name = f"layers.{index}.{PROJECTIONS[sub_block]}.weight"
        moved = _pass(
            self._engine(self._checkpoint.with_tensors({name: drafted}), index, sub_block),
            self._trials[1:],
            self._read_trials[1:],
        )
        if self._read_trials is not self._trials:  # a new variant has read what the draft has
            more = np.repeat(self._read_trials[:1], len(variants) - 1, axis=0)
            self._read_trials = np.concatenate([self._read_trials, more])
        self._trials = np.concatenate([ends[:1], moved, ends[1:]])
        self._variants += [
            ((index, sub_block), variant.error - variants[0].error) for variant in variants[1:]
        ]

    def _engine(self, checkpoint: Checkpoint, index: int, sub_block: SubBlock) -> Engine:
        return layer_engine(
            checkpoint,
            index,
            attention=sub_block == "attention",
            ffn=sub_block == "ffn",
            threads=self._threads,
        )


def _pass(engine: Engine, stream: Hidden, read: Hidden) -> Hidden:
    """The stream after the engine's sub-block, which reads ``read``; [..., tokens, channels]."""
    windows = read.reshape(-1, *read.shape[-2:])
    parts = [after for _, after, _ in chunks(engine, windows)]
    if not parts:
        return stream
    return _onto(stream, read, np.concatenate(parts).reshape(read.shape))


def _onto(stream: Hidden, read: Hidden, after: Hidden) -> Hidden:
    """The stream after a sub-block, given what that made of what it reads."""
    if np.may_share_memory(stream, read):
        return after
    return stream + (after - read)


def _variants(
    part: AttentionConfig | FfnConfig, kept: KeptLayer, rated: LayerScores, sub_block: SubBlock
) -> list[_Variant]:
    """The draft of a sub-block, and what some units less and all units are beside it."""
    if isinstance(part, FfnConfig):
        assert isinstance(kept.ffn, KeptFfn)
        assert rated.neurons is not None
        scores, width, drafted = rated.neurons, 1, kept.ffn.neurons
    else:
        assert isinstance(kept.attention, KeptAttention)
        assert rated.heads is not None
        scores, width, drafted = rated.heads, part.value_dim, kept.attention.heads
    left = sorted(drafted, key=lambda unit: float(scores[unit]))
    fewer = left[min(len(left) - 1, max(1, round(STEP * len(scores)))) :]
    choices = [left]
    if len(fewer) < len(left):
        choices.append(fewer)
    if len(left) < len(scores):
        choices.append(list(range(len(scores))))
    total = float(scores.sum())
    return [
        _Variant(
            unit_entries(tuple(sorted(units)), width), total - float(scores[sorted(units)].sum())
        )
        for units in choices
    ]


def _fit(gram: Array, cross: Array, output: Output, columns: Columns) -> Hidden:
    """The kept columns, making up for the others and for the drift."""
    weight = output.stream_weight
    gone = np.setdiff1d(np.arange(weight.shape[1]), columns)
    wishes = (
        gram[np.ix_(columns, gone)] @ weight[:, gone].T.astype(np.float64),
        cross[columns],
    )
    change = np.zeros((len(weight), len(columns)))
    start = np.zeros_like(change)
    inner = gram[np.ix_(columns, columns)]
    for wish, damping in zip(wishes, DAMPINGS, strict=True):
        if wish.any():  # nothing where nothing has gone
            change += least_squares(Evidence(inner, wish, 0.0, 1), start, damping)
    new: Hidden = (output.weight[:, columns] + output.change(change)).astype(np.float32)
    return new

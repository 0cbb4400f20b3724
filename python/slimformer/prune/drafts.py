"""Drafts of the pruned model, and variants of one, on their way through the layers side by side.

A draft is made quickly: its projections are fitted on little text, with dampings known beforehand,
and all drafts from the moments of the first one's inputs. It costs a fraction of a repair, and
what drafts make of the same text tells which of them is the better one.

One layer is held at a time, whatever the number of drafts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig, LinkConfig, RoutedFfnConfig
from slimformer.engine import Engine, Moments
from slimformer.progress import Progress
from slimformer.prune.divergence import Predictions
from slimformer.prune.expert_drafts import expert_variants, fitted_experts
from slimformer.prune.importance.scores import LayerScores, Scores
from slimformer.prune.journal import Journal
from slimformer.prune.outputs import PROJECTIONS, SUB_BLOCKS, Output, SubBlock
from slimformer.prune.recipe import KeptAttention, KeptExperts, KeptFfn, KeptLayer
from slimformer.prune.refit import Evidence, for_kept, least_squares
from slimformer.prune.stream import (
    TAPS,
    Hidden,
    Windows,
    advance,
    chunks,
    embed,
    grown,
    head_engine,
    inverse_lengths,
    layer_engine,
    precision,
    sub_block_engine,
)
from slimformer.prune.surgery import kept_columns, unit_entries, with_pairs

Array = npt.NDArray[np.float64]
Columns = npt.NDArray[np.intp]
Draft = Sequence[KeptLayer]
"""What stays of each layer of the source, in order, also of those that go as a whole."""

Part = tuple[int, SubBlock]

PREDICTION_STRIDE = 2
"""The head costs a quarter of a pass; it runs on one token in so many."""

TRIAL_WINDOW = 256
"""Tokens in a window that predictions are compared on: shorter ones hold more different text."""

STEP = 0.25
"""Share of a sub-block's units that go in a variant, on top of those that the draft lacks."""

DAMPINGS = (0.3, 3.0)
"""For the output of what went and for the drift; see ``slimformer.prune.repair``."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """How far from the dense model's predictions each draft is, and each variant of the first.

    drafts: nats a token, in the order of the drafts. variants: the sub-block that differs, by how
    much error more than in the draft, and nats a token.
    """

    drafts: tuple[float, ...]
    variants: tuple[tuple[Part, float, float], ...]


class Walk:
    """The dense model, the drafts and the variants of the first on their way through the layers."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        scores: Scores,
        drafts: Sequence[Draft],
        fit: Windows,
        trial: Windows,
        *,
        varied: frozenset[SubBlock],
        threads: int,
    ) -> None:
        """Begin before the first layer.

        Parameters
        ----------
        scores
            Errors, as ``obs`` rates them: in which order units go or come back in variants.
        drafts
            One at least.
        fit, trial
            Windows to fit on and windows to compare predictions on, [windows, tokens].
        varied
            The sub-blocks that variants are made of.
        """
        self._checkpoint = checkpoint
        self._scores = scores
        self._drafts = drafts
        self._varied = varied
        self._threads = threads
        self._target = embed(checkpoint, fit)  # the dense stream
        self._stream = self._target.copy()  # the first draft's
        self._dense = embed(checkpoint, trial)
        # [drafts, then variants; windows, tokens, channels]
        self._trials = np.repeat(self._dense[None], len(drafts), axis=0)
        # What sub-blocks read: the streams as they grow, or as they entered a parallel layer.
        self._read, self._read_trials = self._stream, self._trials
        self._variants: list[tuple[Part, float]] = []

    def run(self, journal: Journal | None, work: str, progress: Progress) -> Trial:
        """Take all streams through the model.

        Parameters
        ----------
        journal
            Where finished layers are written down; those that are there are not done again.
        work
            What the progress is called.
        """
        n_layers = len(self._checkpoint.config.layers)
        for index in range(self._resume(journal), n_layers):
            progress(work, index, n_layers)
            self._layer(index)
            if journal is not None:
                journal.record(index, {}, self._standing())
        found = self._trial()
        progress(work, n_layers, n_layers)
        return found

    def _resume(self, journal: Journal | None) -> int:
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

    def _standing(self) -> dict[str, npt.NDArray[np.float32]]:
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

    def _layer(self, index: int) -> None:
        """Take all streams through a layer."""
        engine = layer_engine(self._checkpoint, index, threads=self._threads)
        between = advance(engine, self._target)
        self._dense = _pass(engine, self._dense, self._dense)
        layer = self._checkpoint.config.layers[index]
        self._read, self._read_trials = self._stream, self._trials
        if layer.parallel:
            self._read, self._read_trials = self._stream.copy(), self._trials.copy()
        for sub_block in SUB_BLOCKS:
            part = getattr(layer, sub_block)
            wanted = between if sub_block == "attention" else self._target
            if isinstance(part, LinkConfig):
                self._link(index, sub_block)
            elif isinstance(part, RoutedFfnConfig):
                self._experts(index, part, wanted)
            elif part is not None:
                self._sub_block(index, sub_block, wanted)
            if not layer.parallel:
                self._read, self._read_trials = self._stream, self._trials

    def _trial(self) -> Trial:
        """What the predictions are like after the last layer."""
        engine = head_engine(self._checkpoint, threads=self._threads)

        def logits(stream: Hidden) -> Hidden:
            rows = stream.reshape(-1, stream.shape[-1])[::PREDICTION_STRIDE]
            return engine.logits(np.ascontiguousarray(rows))

        predictions = Predictions(logits(self._dense))
        found = [predictions.divergence(logits(stream)) for stream in self._trials]
        n_drafts = len(self._drafts)
        return Trial(
            tuple(found[:n_drafts]),
            tuple(
                (part, error, divergence)
                for (part, error), divergence in zip(self._variants, found[n_drafts:], strict=True)
            ),
        )

    def _link(self, index: int, sub_block: SubBlock) -> None:
        """A link runs in the drafts that keep it, and in variants as in the first of them."""
        engine = self._engine(self._checkpoint, index, sub_block)
        keeps = [getattr(draft[index], sub_block) is not None for draft in self._drafts]
        keeps += [keeps[0]] * (len(self._trials) - len(keeps))
        if keeps[0]:
            self._stream = _pass(engine, self._stream, self._read)
        passed = _pass(engine, self._trials, self._read_trials)
        self._trials = np.where(np.array(keeps)[:, None, None, None], passed, self._trials)

    def _sub_block(self, index: int, sub_block: SubBlock, wanted: Hidden) -> None:
        """Fit a sub-block of the drafts and its variants, and move the streams on."""
        tap = TAPS[sub_block]
        output = Output(self._checkpoint, index, sub_block)
        channels, width = output.weight.shape
        moments = Moments(
            width,
            target_width=channels,
            products=precision(self._checkpoint),
            threads=self._threads,
        )
        pairs = [
            draft[index].rotary_pairs if sub_block == "attention" else None
            for draft in self._drafts
        ]
        drafted = with_pairs(self._checkpoint, index, pairs[0])
        engine = self._engine(drafted, index, sub_block)
        inputs = np.empty((*self._stream.shape[:2], width), np.float32)
        for rows, after, captured in chunks(engine, self._read, capture=[tap]):
            inputs[rows] = captured[tap]
            drift = wanted[rows] - grown(self._stream[rows], self._read[rows], after)
            scale = inverse_lengths(wanted[rows])
            divisors = output.divisors(self._stream[rows], inputs[rows])
            moments.update(
                (inputs[rows] * (scale / divisors)).reshape(-1, width),
                (drift * scale).reshape(-1, channels),
            )
        gram, cross = moments.gram, moments.cross
        n_drafts = len(self._drafts)
        trial_inputs = np.empty((n_drafts, *self._dense.shape[:2], width), np.float32)
        for of_some in set(pairs):
            same = [draft for draft, own in enumerate(pairs) if own == of_some]
            own_engine = engine
            if of_some != pairs[0]:
                narrower = with_pairs(self._checkpoint, index, of_some)
                own_engine = self._engine(narrower, index, sub_block)
            read = self._read_trials[same].reshape(-1, *self._dense.shape[1:])
            seen = [captured[tap] for _, _, captured in chunks(own_engine, read, capture=[tap])]
            trial_inputs[same] = np.concatenate(seen).reshape(-1, *trial_inputs.shape[1:])

        layer = self._checkpoint.config.layers[index]
        fits: dict[bytes, Hidden] = {}

        def fit(columns: Columns) -> Hidden:
            key = columns.tobytes()
            if key not in fits:
                fits[key] = _fit(gram, cross, output, columns)
            return fits[key]

        def end(draft: int, columns: Columns) -> Hidden:
            inputs = trial_inputs[draft][..., columns]
            return output.after(self._trials[draft], inputs, fit(columns))

        kept = [kept_columns(layer, draft[index]).get(sub_block) for draft in self._drafts]
        ends = [
            self._trials[draft] if columns is None else end(draft, columns)
            for draft, columns in enumerate(kept)
        ]
        moved = self._trials[n_drafts:]
        if kept[0] is not None:
            self._stream = output.after(self._stream, inputs[..., kept[0]], fit(kept[0]))
            fitted = np.zeros_like(output.weight)
            fitted[:, kept[0]] = fit(kept[0])
            name = f"layers.{index}.{PROJECTIONS[sub_block]}.weight"
            moved = _pass(
                self._engine(drafted.with_tensors({name: fitted}), index, sub_block),
                moved,
                self._read_trials[n_drafts:],
            )
        variants = self._variants_of(index, sub_block)
        added = [end(0, variant.columns) for variant in variants]
        errors = [variant.error for variant in variants]
        self._move((index, sub_block), ends, moved, added, errors)

    def _experts(self, index: int, ffn: RoutedFfnConfig, wanted: Hidden) -> None:
        """Fit the experts of the drafts and their variants, and move the streams on."""
        streams = (self._stream, self._read, wanted)
        engines: dict[KeptExperts, Engine] = {}

        def engine(kept: KeptExperts) -> Engine:
            if kept not in engines:
                fitted = fitted_experts(
                    self._checkpoint, index, kept, streams, DAMPINGS, self._threads
                )
                engines[kept] = self._engine(fitted, 0, "ffn")
            return engines[kept]

        n_drafts = len(self._drafts)
        trials, read = self._trials, self._read_trials
        ends = []
        for draft, stream, entered in zip(self._drafts, trials, read, strict=False):
            kept = draft[index].ffn
            if isinstance(kept, KeptExperts):
                stream = _pass(engine(kept), stream, entered)
            ends.append(stream)
        first = self._drafts[0][index].ffn
        moved = trials[n_drafts:]
        added: list[Hidden] = []
        errors: list[float] = []
        if isinstance(first, KeptExperts):
            moved = _pass(engine(first), moved, read[n_drafts:])
            if "ffn" in self._varied:
                for kept, error in expert_variants(ffn, first, self._scores[index], STEP):
                    added.append(_pass(engine(kept), trials[0], read[0]))
                    errors.append(error)
            self._stream = _pass(engine(first), self._stream, self._read)
        self._move((index, "ffn"), ends, moved, added, errors)

    def _move(
        self,
        part: Part,
        ends: list[Hidden],
        moved: Hidden,
        added: list[Hidden],
        errors: list[float],
    ) -> None:
        """The streams behind a sub-block: of drafts, of the variants so far, and of new ones."""
        if self._read_trials is not self._trials:  # a new variant has read what the draft has
            more = np.repeat(self._read_trials[:1], len(added), axis=0)
            self._read_trials = np.concatenate([self._read_trials, more])
        self._trials = np.concatenate([np.stack(ends), moved, *(one[None] for one in added)])
        self._variants += [(part, error) for error in errors]

    def _variants_of(self, index: int, sub_block: SubBlock) -> list[_Variant]:
        kept = self._drafts[0][index]
        if sub_block not in self._varied or getattr(kept, sub_block) is None:
            return []
        part = getattr(self._checkpoint.config.layers[index], sub_block)
        return _variants(part, kept, self._scores[index])

    def _engine(self, checkpoint: Checkpoint, index: int, sub_block: SubBlock) -> Engine:
        return sub_block_engine(checkpoint, index, sub_block, threads=self._threads)


@dataclasses.dataclass(frozen=True)
class _Variant:
    """The columns of a projection that stay, and the error of what goes beyond the draft's."""

    columns: Columns
    error: float


def _pass(engine: Engine, stream: Hidden, read: Hidden) -> Hidden:
    """The stream after the engine's sub-block, which reads ``read``; [..., tokens, channels]."""
    windows = read.reshape(-1, *read.shape[-2:])
    parts = [after for _, after, _ in chunks(engine, windows)]
    if not parts:
        return stream
    return grown(stream, read, np.concatenate(parts).reshape(read.shape))


def _variants(
    part: AttentionConfig | FfnConfig, kept: KeptLayer, rated: LayerScores
) -> list[_Variant]:
    """Some units less than the draft has, and all units."""
    if isinstance(part, FfnConfig):
        assert isinstance(kept.ffn, KeptFfn)
        assert rated.neurons is not None
        scores, width, drafted = rated.neurons, 1, kept.ffn.neurons
        entries = None
    else:
        assert isinstance(kept.attention, KeptAttention)
        assert rated.heads is not None
        scores, width, drafted = rated.heads, part.value_dim, kept.attention.heads
        entries = kept.attention.value_dims
    left = sorted(drafted, key=lambda unit: float(scores[unit]))
    fewer = left[min(len(left) - 1, max(1, round(STEP * len(scores)))) :]
    choices = []
    if len(fewer) < len(left):
        choices.append(fewer)
    if len(left) < len(scores):
        choices.append(list(range(len(scores))))
    present = float(scores[sorted(left)].sum())
    return [
        _Variant(
            unit_entries(tuple(sorted(units)), width, entries),
            present - float(scores[sorted(units)].sum()),
        )
        for units in choices
    ]


def _fit(gram: Array, cross: Array, output: Output, columns: Columns) -> Hidden:
    """The kept columns, making up for the others and for the drift."""
    weight = output.stream_weight
    wishes = for_kept(Evidence(gram, cross, 0.0, 1), weight, columns)
    change = np.zeros((len(weight), len(columns)))
    start = np.zeros_like(change)
    for wish, damping in zip(wishes, DAMPINGS, strict=True):
        if wish.cross.any():  # nothing where nothing has gone
            change += least_squares(wish, start, damping)
    new: Hidden = (output.weight[:, columns] + output.change(change)).astype(np.float32)
    return new

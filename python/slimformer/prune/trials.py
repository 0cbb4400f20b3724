"""Cuts on trial: what each does to the predictions, with the best of what can take its place.

All trials go through the model side by side, so that one layer is held at a time. What stands in
for a sub-block is fitted on some text and judged on other text. Its inputs are those of the model
that is cut already, its target is the dense stream after the sub-block less the other one before
it: what other cuts have left behind is made up for as well.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import LinkConfig
from slimformer.engine import Engine
from slimformer.errors import DataError
from slimformer.progress import Progress
from slimformer.prune.cuts import Cut, Replacement, output_tensors
from slimformer.prune.divergence import Predictions
from slimformer.prune.evidence import gather
from slimformer.prune.links import NO_DAMPING, LinearMap, link_inputs, link_matrix, link_shapes
from slimformer.prune.outputs import SubBlock
from slimformer.prune.refit import Evidence, least_squares
from slimformer.prune.stream import (
    Hidden,
    Windows,
    advance,
    embed,
    head_engine,
    inverse_lengths,
    layer_engine,
    pass_through,
    precision,
)

Array = npt.NDArray[np.float64]

Gain = Callable[[Cut, LinkConfig | None], float]
"""What a cut saves of the budget with such a link in its place."""

TRIAL_BYTES = 1 << 30
"""Of streams that are held at once."""

PREDICTIONS = 1 << 26
"""Logits that are held at once: the head runs on as many tokens as that allows, evenly spread."""

DAMPINGS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Multiples of the mean diagonal of the Gram matrix that maps of activations are fitted with."""


@dataclasses.dataclass(frozen=True)
class _Steps:
    """A stream on its way through a layer, all [windows, tokens, channels]."""

    before: Hidden
    between: Hidden
    after: Hidden


@dataclasses.dataclass(frozen=True)
class _Added:
    """What one sub-block has added to the stream, and the tensors that its rows come from."""

    tensors: tuple[str, ...]
    output: Hidden


@dataclasses.dataclass(frozen=True)
class _Option:
    """Something that can take the place of a cut: what it adds is ``inputs`` through ``matrix``.

    ``tensors`` makes its values by name, ``error`` is what it leaves behind on text not fitted.
    """

    link: LinkConfig | None
    error: float
    inputs: Hidden
    matrix: Array | None
    tensors: Callable[[], dict[str, Hidden]]


class Trials:
    """The dense model's streams and predictions, with which cuts of it are compared."""

    def __init__(
        self,
        dense: Checkpoint,
        fit: Windows,
        judged: Windows,
        *,
        links: bool,
        threads: int,
        progress: Progress,
    ) -> None:
        """Read the text with the dense model.

        Parameters
        ----------
        fit, judged
            Tokens that what takes the place of cuts is fitted on, and those that it is judged on,
            [windows, tokens]. Without text to fit on nothing does.
        links
            Whether links are tried, or only what costs nothing.
        """
        self._windows = np.concatenate([fit, judged])
        self._fit, self._trial = slice(0, len(fit)), slice(len(fit), len(self._windows))
        self._dense = dense
        self._entry = (0, embed(dense, self._windows))  # a layer, and the dense stream before it
        self._links = links
        self._threads = threads
        self._progress = progress
        self._head = head_engine(dense, threads=threads)
        self._stride = -(-judged.size * dense.config.vocab_size // PREDICTIONS)
        stream = self._entry[1][self._trial].copy()
        for index in range(len(dense.config.layers)):
            progress("read the dense model", index, len(dense.config.layers))
            pass_through(self._engine(dense, index), stream)
        self._predictions = Predictions(self._logits(stream))

    def run(
        self, draft: Checkpoint, cuts: Sequence[Cut], gain: Gain, what: str
    ) -> list[Replacement]:
        """Try each cut on a draft, with what leaves the least error behind for what it saves.

        Parameters
        ----------
        draft
            The dense model with cuts made already.
        what
            This work in progress messages.
        """
        ordered = sorted(cuts, key=lambda cut: cut.layer)
        stream = self._windows[self._trial].size * self._dense.config.n_channels * 4
        step = max(1, TRIAL_BYTES // stream)
        found: list[Replacement] = []
        for start in range(0, len(ordered), step):
            found += self._side_by_side(draft, ordered[start : start + step], gain, what)
        return found

    def _side_by_side(
        self, draft: Checkpoint, cuts: Sequence[Cut], gain: Gain, what: str
    ) -> list[Replacement]:
        first, target = self._common(draft, cuts)
        stream = target
        trials = np.empty((len(cuts), *stream[self._trial].shape), np.float32)
        chosen: list[_Option] = []
        added: _Added | None = None
        for index in range(first, len(draft.config.layers)):
            self._progress(what, index, len(draft.config.layers))
            engine = self._engine(draft, index)
            pass_through(engine, trials[: len(chosen)])
            if index > cuts[-1].layer:
                continue
            untouched = self._untouched(draft, index)
            wanted = _steps(engine if untouched else self._engine(self._dense, index), target)
            here = wanted if untouched and stream is target else _steps(engine, stream)
            attended = self._added(draft, index, "attention", here) or added
            for cut in cuts:
                if cut.layer == index:
                    last = added if "attention" in cut.parts else attended
                    option = self._best(draft, cut, wanted, here, last, gain)
                    trials[len(chosen)] = self._after(draft, cut, here, option)
                    chosen.append(option)
            added = self._added(draft, index, "ffn", here) or attended
            target, stream = wanted.after, here.after
        return [
            Replacement(
                cut,
                option.link,
                option.tensors(),
                self._predictions.divergence(self._logits(trial)),
            )
            for cut, option, trial in zip(cuts, chosen, trials, strict=True)
        ]

    def _added(self, draft: Checkpoint, index: int, part: SubBlock, here: _Steps) -> _Added | None:
        """What a sub-block adds, if it is there."""
        if getattr(draft.config.layers[index], part) is None:
            return None
        ends = (here.before, here.between) if part == "attention" else (here.between, here.after)
        return _Added(output_tensors(draft, index, part), ends[1] - ends[0])

    def _common(self, draft: Checkpoint, cuts: Sequence[Cut]) -> tuple[int, Hidden]:
        """A layer before which all is as in the dense model, and the stream that enters it.

        The layer before the first change is the one whose output may do the work of what goes. The
        stream is kept for the next time, when mostly no earlier layer matters.
        """
        changed = 0
        while changed < cuts[0].layer and self._untouched(draft, changed):
            changed += 1
        first = max(0, changed - 1)
        start, stream = self._entry
        if start > first:
            start, stream = 0, embed(self._dense, self._windows)
        for index in range(start, first):
            pass_through(self._engine(self._dense, index), stream)
        self._entry = (first, stream)
        return self._entry

    def _best(
        self,
        draft: Checkpoint,
        cut: Cut,
        wanted: _Steps,
        here: _Steps,
        last: _Added | None,
        gain: Gain,
    ) -> _Option:
        """Of all that can take the place of a cut, what leaves least error for what it saves."""
        attention_only = cut.parts == ("attention",)
        goal = wanted.between if attention_only else wanted.after
        kept = here.between if attention_only else here.after
        wishes = (kept - _without(cut, here), goal - kept)
        scale = inverse_lengths(goal)
        # The error that is there without the cut.
        least = self._energy(wishes[1] * scale)
        options = list(self._options(draft, cut, here, last, wishes, scale))
        if not np.isfinite([least, *(option.error for option in options)]).all():
            raise DataError(
                f"layer {cut.layer}: activations on the calibration text are not finite"
            )
        savings = [gain(cut, option.link) for option in options]
        possible = [one for one in zip(options, savings, strict=True) if one[1] > 0]
        return min(possible, key=lambda one: (one[0].error - least) / one[1])[0]

    def _options(
        self,
        draft: Checkpoint,
        cut: Cut,
        here: _Steps,
        last: _Added | None,
        wishes: tuple[Hidden, Hidden],
        scale: Hidden,
    ) -> Iterable[_Option]:
        place = cut.parts[0]
        missed = wishes[0] + wishes[1]
        parallel = draft.config.layers[cut.layer].parallel
        yield _Option(None, self._energy(missed * scale), missed, None, dict)
        if self._fit.stop == 0:
            return
        if last is not None and last.tensors and not parallel:
            found, judge = self._fitted(last.output, wishes, scale)
            turn = np.eye(len(found.matrix)) + found.matrix

            def folded(names: tuple[str, ...] = last.tensors) -> dict[str, Hidden]:
                return {name: (turn @ draft.read_f32(name)).astype(np.float32) for name in names}

            yield _Option(None, judge.error(found.matrix), last.output, found.matrix, folded)
        if self._links:
            read = here.between if place == "ffn" and not parallel else here.before
            all_shapes = link_shapes(draft.config.n_channels)
            for reads, shapes in itertools.groupby(all_shapes, operator.attrgetter("reads")):
                inputs = link_inputs(draft, cut.layer, place, read, reads=reads)
                dampings = DAMPINGS if reads else (NO_DAMPING,)
                found, judge = self._fitted(inputs, wishes, scale, dampings)
                for shape in shapes:
                    parts = found.shaped(shape)
                    matrix = link_matrix(parts)
                    named = {
                        f"layers.{cut.layer}.{place}.{part}": values.astype(np.float32)
                        for part, values in parts.items()
                    }
                    yield _Option(shape, judge.error(matrix), inputs, matrix, named.copy)

    def _fitted(
        self,
        inputs: Hidden,
        wishes: tuple[Hidden, Hidden],
        scale: Hidden,
        dampings: Sequence[float] = DAMPINGS,
    ) -> tuple[LinearMap, Evidence]:
        """The map to the sum of the wishes, and the evidence for it on text not fitted.

        Each wish has the damping that does best there, see ``fit_link``.
        """

        def known(rows: slice, *wanted: Hidden) -> list[Evidence]:
            return gather(
                inputs[rows],
                *(one[rows] for one in wanted),
                scale=scale[rows],
                products=precision(self._dense),
                threads=self._threads,
            )

        fits = known(self._fit, *wishes)
        *judges, judge = known(self._trial, *wishes, wishes[0] + wishes[1])
        matrix = np.zeros((wishes[0].shape[-1], inputs.shape[-1]))
        for fit, judged in zip(fits, judges, strict=True):
            tried = (least_squares(fit, np.zeros_like(matrix), damping) for damping in dampings)
            matrix = matrix + min(tried, key=judged.error)
        return LinearMap(matrix, fits[0].gram), judge

    def _after(self, draft: Checkpoint, cut: Cut, here: _Steps, option: _Option) -> Hidden:
        """The trial's stream after the layer of its cut."""
        stream: Hidden = _without(cut, here)[self._trial]
        if option.matrix is not None:
            stream = stream + option.inputs[self._trial] @ option.matrix.T.astype(np.float32)
        layer = draft.config.layers[cut.layer]
        if "ffn" in cut.parts or layer.ffn is None:
            return stream
        if layer.parallel:
            output: Hidden = here.after[self._trial] - here.between[self._trial]
            return stream + output
        stream = stream.copy()
        ffn = layer_engine(draft, cut.layer, attention=False, threads=self._threads)
        pass_through(ffn, stream)
        return stream

    def _energy(self, values: Hidden) -> float:
        """Mean square length of the values of a token, on the text of the trials."""
        judged = values[self._trial]
        total = np.einsum("wtc,wtc->", judged, judged, dtype=np.float64)
        return float(total) / int(np.prod(judged.shape[:2]))

    def _logits(self, stream: Hidden) -> Hidden:
        rows = stream.reshape(-1, stream.shape[-1])[:: self._stride]
        return self._head.logits(np.ascontiguousarray(rows))

    def _untouched(self, draft: Checkpoint, index: int) -> bool:
        if draft.config.layers[index] != self._dense.config.layers[index]:
            return False
        return all(
            tensor is self._dense.tensors[name]
            for name, tensor in draft.tensors.items()
            if name.startswith(f"layers.{index}.")
        )

    def _engine(self, model: Checkpoint, index: int) -> Engine:
        return layer_engine(model, index, threads=self._threads)


def _without(cut: Cut, here: _Steps) -> Hidden:
    """The stream where what goes would have been added."""
    first: SubBlock = cut.parts[0]
    return here.before if first == "attention" else here.between


def _steps(engine: Engine, stream: Hidden) -> _Steps:
    after = stream.copy()
    return _Steps(stream, advance(engine, after), after)

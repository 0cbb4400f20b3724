"""Repair of an FFN whose neurons learn to do what those that went did.

The text is halved, and for each half there are matrices that learn from it alone, so that the other
half can go on through matrices that have not seen it. The model gets the means of both: they have
set out from the same point and lie close together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint, Tensor
from slimformer.config import FfnConfig
from slimformer.engine import Engine
from slimformer.prune.evidence import EvidenceSums, Products, check_evidence
from slimformer.prune.expert_repair import Store
from slimformer.prune.learning import BATCH, Batch, FfnWeights, learn, output
from slimformer.prune.outputs import Output
from slimformer.prune.refit import Evidence, Refit, choose
from slimformer.prune.stream import (
    CHUNK_TOKENS,
    TAPS,
    Hidden,
    chunks,
    grown,
    inverse_lengths,
    sub_block_engine,
)
from slimformer.prune.surgery import Entries

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

START_TOKENS = 32768
"""Tokens that the down-projection is refitted on before anything learns, and that tell whether
learning helped."""

LEAST_ERROR = 0.02
"""Where that refit leaves less of what the FFN adds, learning gains nothing worth its time."""

LEAST_STEPS = 8
"""With fewer batches of text for each half nothing is learned."""

_TAP = TAPS["ffn"]


@dataclasses.dataclass(frozen=True)
class NeuronText:
    """What an FFN reads on the pruned stream, and what the whole one adds there.

    dense: an engine that holds the whole FFN. down: the projection there. stream, read, wanted:
    what the FFN adds to, what it reads and what should come out of it, each [windows, tokens,
    channels]. parts: parts of the windows.
    """

    dense: Engine
    down: Hidden
    stream: Hidden
    read: Hidden
    wanted: Hidden
    parts: Sequence[slice]

    def flow(self, windows: Places) -> Iterator[tuple[Hidden, Batch]]:
        """These windows, some at a time: all neurons, [tokens, neurons], and what to learn."""
        for start in range(0, len(windows), self._together):
            some = windows[start : start + self._together]
            ((_, _, captured),) = chunks(self.dense, self.read[some], capture=[_TAP, "ffn_normed"])
            neurons, inputs = _rows(captured[_TAP]), _rows(captured["ffn_normed"])
            scale = _rows(inverse_lengths(self.wanted[some]))
            yield neurons, (inputs, neurons @ self.down.T, scale)

    def batches(self, windows: Places, passes: int, seed: Sequence[int]) -> Iterator[Batch]:
        """The tokens of these windows in a random order, which mixes what flows at a time."""
        rng = np.random.default_rng(seed)
        for _ in range(passes):
            for _, (inputs, whole, scale) in self.flow(rng.permutation(windows)):
                order = rng.permutation(len(inputs))
                for start in range(0, len(order) - BATCH + 1, BATCH):
                    some = order[start : start + BATCH]
                    yield inputs[some], whole[some], scale[some]

    def steps(self, windows: Places) -> int:
        """How many batches one pass over these windows gives."""
        groups, rest = divmod(len(windows), self._together)
        tokens = self._tokens
        return groups * (self._together * tokens // BATCH) + rest * tokens // BATCH

    def samples(self) -> list[Places]:
        """The first windows of each part, ``START_TOKENS`` tokens in all."""
        most = max(1, START_TOKENS // (self._tokens * len(self.parts)))
        return [np.r_[part][:most] for part in self.parts]

    @property
    def _tokens(self) -> int:
        """Tokens of a window."""
        return int(self.stream.shape[1])

    @property
    def _together(self) -> int:
        """Windows that flow at a time."""
        return max(1, CHUNK_TOKENS // self._tokens)


class NeuronRepair:
    """Repair of the FFN of one layer, behind which no norm follows."""

    def __init__(
        self,
        text: NeuronText,
        pruned: Checkpoint,
        index: int,
        kept: Entries,
        *,
        passes: int,
        first: tuple[float, float],
        products: Products,
        threads: int,
    ) -> None:
        """Nothing is repaired yet.

        Parameters
        ----------
        pruned, index
            The model after surgery, and the layer there.
        kept
            Neurons that are left.
        passes
            How often all the text is learned from.
        first
            Where the search for dampings begins: of a refit for what went, and for the drift.
        """
        ffn = pruned.config.layers[index].ffn
        assert isinstance(ffn, FfnConfig)
        self._text = text
        self._pruned = pruned
        self._index = index
        self._kept = kept
        self._ffn = ffn
        self._passes = passes
        self._first = first
        self._products: Products = products
        self._threads = threads
        self._prefix = f"layers.{index}.ffn."
        self._output = Output(pruned, index, "ffn")
        self._cut = self._read()

    def run(self, store: Store) -> Hidden | None:
        """Let the FFN learn, and refit its down-projection for what is left to do.

        Parameters
        ----------
        store
            Keeps a new weight under its name and says what type it is stored in.

        Returns
        -------
        The stream behind the FFN, each part of it having gone through weights that have not seen
        it; or ``None`` where nothing was learned, or it was no good.
        """
        text = self._text
        middle = len(text.parts) // 2
        halves = text.parts[:middle], text.parts[middle:]
        windows = [np.concatenate([np.r_[part] for part in half]) for half in halves]
        if min(map(text.steps, windows)) < LEAST_STEPS:
            return None
        start, without, error = self._refitted()
        if error < LEAST_ERROR:
            return None
        first, second = (
            learn(
                start,
                self._ffn.activation,
                text.batches(own, self._passes, (self._index, half)),
                self._passes * text.steps(own),
                min(1.0, error),
            )
            for half, own in enumerate(windows)
        )
        unseen = [second] * len(halves[0]) + [first] * len(halves[1])
        if not self._better(unseen, without):
            return None
        return self._with_drift(first.mean(second), unseen, store)

    def _read(self) -> FfnWeights:
        """The matrices as surgery left them."""

        def read(part: str, otherwise: Any) -> Any:
            name = self._prefix + part
            return self._pruned.read_f32(name) if name in self._pruned.tensors else otherwise

        return FfnWeights(
            read("up.weight", None),
            self._output.weight,
            read("gate.weight", None),
            read("up.bias", 0.0),
            read("gate.bias", 0.0),
        )

    def _refitted(self) -> tuple[FfnWeights, list[FfnWeights], float]:
        """Where learning begins: down refitted on some of the text.

        Also what is so refitted without each part, and the share of the wanted outputs' energy that
        is left on text not fitted.
        """
        evidence, energy, count = [], 0.0, 0
        for windows in self._text.samples():
            sums = self._sums()
            for neurons, (_, whole, scale) in self._text.flow(windows):
                left = np.take(neurons, self._kept, axis=1)
                sums.add(left, (whole - left @ self._cut.down.T,), scale)
                energy += float(np.sum((whole * scale) ** 2, dtype=np.float64))
                count += len(whole)
            evidence += sums.evidence()
        found = self._choose(evidence, self._first[0])

        def moved(change: Array) -> FfnWeights:
            down = self._cut.down + change.astype(np.float32)
            return dataclasses.replace(self._cut, down=down)

        error = found.after * count / energy if energy else 0.0
        return moved(found.weight), [moved(change) for change in found.without], error

    def _better(self, learned: Sequence[FfnWeights], refitted: Sequence[FfnWeights]) -> bool:
        """Whether some text of each part loses less in what was learned than in a refit.

        A loss is the mean over the channels of the share of each one's energy: learning follows the
        loud ones, and what readers think of those it does not know.
        """
        channels = len(self._cut.down)
        wrong, energy = np.zeros((2, channels)), np.zeros(channels)
        rivals = zip(self._text.samples(), learned, refitted, strict=True)
        for windows, *both in rivals:
            for _, (inputs, whole, scale) in self._text.flow(windows):
                energy += np.sum((whole * scale) ** 2, axis=0, dtype=np.float64)
                for rival, weights in enumerate(both):
                    missing = (output(weights, self._ffn.activation, inputs) - whole) * scale
                    wrong[rival] += np.sum(missing**2, axis=0, dtype=np.float64)
        heard = energy > 0
        new, old = np.mean(wrong[:, heard] / energy[heard], axis=1)
        return bool(new < old)

    def _with_drift(self, mean: FfnWeights, unseen: Sequence[FfnWeights], store: Store) -> Hidden:
        """Refit down, as it was learned, so that the stream comes to where it should.

        Parameters
        ----------
        mean
            Of what was learned, for the model.
        unseen
            What has not seen each part of the text.

        Returns
        -------
        The stream that has come out.
        """
        stream, read, wanted = self._text.stream, self._text.read, self._text.wanted
        inputs = np.empty((*stream.shape[:2], self._cut.down.shape[1]), np.float32)
        evidence = []
        for part, weights in zip(self._text.parts, unseen, strict=True):
            model = self._with(weights)
            engine = sub_block_engine(model, self._index, "ffn", threads=self._threads)
            sums = self._sums()
            for rows, after, captured in chunks(engine, read[part], capture=[_TAP]):
                there = slice(part.start + rows.start, part.start + rows.stop)
                inputs[there] = captured[_TAP]
                missing = wanted[there] - grown(stream[there], read[there], after)
                sums.add(inputs[there], (missing,), inverse_lengths(wanted[there]))
            evidence += sums.evidence()
        refit = self._choose(evidence, self._first[1])
        for name, matrix in mean.matrices.items():
            if name != "down":
                store(f"{self._prefix}{name}.weight", matrix.astype(np.float64))
        stored = store(f"{self._prefix}down.weight", mean.down + refit.weight)
        result = np.empty_like(stream)
        for part, weights, change in zip(self._text.parts, unseen, refit.without, strict=True):
            own = (weights.down + change).astype(stored)
            result[part] = self._output.after(stream[part], inputs[part], own.astype(np.float32))
        return result

    def _with(self, weights: FfnWeights) -> Checkpoint:
        """The model with these weights in its FFN."""
        tensors = {
            f"{self._prefix}{name}.weight": Tensor.of(matrix)
            for name, matrix in weights.matrices.items()
        }
        return dataclasses.replace(self._pruned, tensors={**self._pruned.tensors, **tensors})

    def _sums(self) -> EvidenceSums:
        channels, neurons = self._cut.down.shape
        return EvidenceSums(neurons, channels, 1, self._products, self._threads)

    def _choose(self, evidence: list[Evidence], first: float) -> Refit:
        """What to add to down."""
        check_evidence(f"{self._prefix}down", *evidence)
        return choose(evidence, np.zeros(self._cut.down.shape), first=first)


def _rows(values: Hidden) -> Hidden:
    return values.reshape(-1, values.shape[-1])

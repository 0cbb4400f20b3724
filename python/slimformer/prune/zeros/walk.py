"""Zeros for a whole model, layer by layer, on the already sparse model before it.

The calibration text flows through the model as it came and through the sparse one side by side,
as in ``slimformer.prune.repair``. What matrices read is that of the sparse stream; what they are
to do is what the other stream wants: the matrices at the entry of a sub-block give what they gave
for that stream's input, and its projection leads to that stream's output, whatever drift the
layers before have left.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint, Tensor
from slimformer.config import AttentionConfig, FfnConfig, LinkConfig, RoutedFfnConfig
from slimformer.engine import Engine, Moments
from slimformer.progress import Progress, silent
from slimformer.prune.evidence import EvidenceSums, check_evidence
from slimformer.prune.expert_refit import ExpertEvidence, Fit
from slimformer.prune.journal import Journal
from slimformer.prune.outputs import PROJECTIONS, SUB_BLOCKS, Output, SubBlock, normed
from slimformer.prune.refit import DAMPINGS, Evidence, choose
from slimformer.prune.stream import (
    TAPS,
    Hidden,
    Windows,
    advance,
    chunks,
    embed,
    grown,
    inverse_lengths,
    layer_engine,
    precision,
    sub_block_engine,
)
from slimformer.prune.zeros.choice import Zeros
from slimformer.prune.zeros.problem import Inputs, Solver
from slimformer.prune.zeros.vocabulary import EMBEDDING, fill_vocabulary

Array = npt.NDArray[np.float64]

FIRST_DAMPING = 0.3
"""Where the search for the damping of the drift begins, see ``refit.choose``; later searches begin
where the one of the same place in the layer before has ended."""

HELD_OUT = 0.25
"""Share of the text that it is chosen on."""

ROWS = 8
"""Windows whose drift is worked out at a time."""


def fill(
    checkpoint: Checkpoint,
    zeros: Zeros,
    windows: Windows,
    *,
    refit: bool,
    journal: Journal | None = None,
    threads: int = 0,
    progress: Progress = silent,
) -> Checkpoint:
    """The model with its zeros, and with survivors that make up for them.

    Parameters
    ----------
    zeros
        Which; of embedding and head, and of the matrices of attention and FFN. Others stay as they
        are.
    windows
        Calibration tokens, [windows, tokens].
    refit
        Whether survivors are refitted, towards what the model did before; else they stay what
        the method makes of them.
    journal
        Where finished layers are written down; those that are there already are not done again.

    Raises
    ------
    DataError
        Activations on the text that are not finite.
    """
    walk = _Walk(checkpoint, zeros, windows, refit, threads)
    n_layers = len(checkpoint.config.layers)
    first = walk.resume(journal)
    if first == 0:
        walk.begin()
    for index in range(first, n_layers):
        progress("zeros in layers", index, n_layers)
        walk.layer(index)
        if journal is not None:
            walk.record(journal, index)
    progress("zeros in layers", n_layers, n_layers)
    return dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, **walk.weights})


class _Walk:
    """Both streams on their way through the layers, and the weights found so far."""

    def __init__(
        self, checkpoint: Checkpoint, zeros: Zeros, windows: Windows, refit: bool, threads: int
    ) -> None:
        self._checkpoint = checkpoint
        self._zeros = zeros
        self._solver = Solver(zeros.method, zeros.pattern, refit)
        self._refit = refit
        self._threads = threads
        self._products = precision(checkpoint)
        if len(windows) == 1:  # there must be something to hold out
            half = windows.shape[1] // 2
            windows = windows[:, : 2 * half].reshape(2, half)
        fitted = len(windows) - max(1, round(HELD_OUT * len(windows)))
        self._parts = (slice(0, fitted), slice(fitted, len(windows)))
        self._windows = windows
        self._target = embed(checkpoint, windows)  # the stream of the model as it came
        self._stream = self._target.copy()  # the sparse model's
        # The dampings found last, at the entry and at the exit of attention and of FFN.
        self._dampings = np.full(4, FIRST_DAMPING, np.float32)
        self.weights: dict[str, Tensor] = {}
        self._found: dict[str, npt.NDArray[Any]] = {}  # in the layer at hand

    def begin(self) -> None:
        """Give embedding and head their zeros, before the layers: those make up for them, too."""
        found = fill_vocabulary(
            self._checkpoint,
            self._zeros,
            self._windows,
            refit=self._refit,
            threads=self._threads,
        )
        for name, weight in found.items():
            self._found[name] = weight.astype(DTYPES[self._checkpoint.tensors[name].dtype])
            self.weights[name] = Tensor.of(self._found[name])
        if EMBEDDING in found:
            self._stream = embed(self._sparse, self._windows)

    @property
    def _sparse(self) -> Checkpoint:
        """The model with the weights found so far."""
        tensors = {**self._checkpoint.tensors, **self.weights}
        return dataclasses.replace(self._checkpoint, tensors=tensors)

    def resume(self, journal: Journal | None) -> int:
        """Go on where a journal ends; the first layer that is left to do."""
        found = None if journal is None else journal.resume()
        if found is None:
            return 0
        last, weights, standing = found
        self.weights.update(weights)
        self._target = standing["target"].read().copy()
        self._stream = standing["stream"].read().copy()
        self._dampings = standing["dampings"].read().copy()
        return last + 1

    def record(self, journal: Journal, index: int) -> None:
        """Write down what was found in a layer; from then on it is read from there."""
        standing = {
            "target": self._target,
            "stream": self._stream,
            "dampings": self._dampings,
        }
        self.weights.update(journal.record(index, self._found, standing))
        self._found = {}

    def layer(self, index: int) -> None:
        """Give the matrices of a layer their zeros and take both streams through it."""
        layer = self._checkpoint.config.layers[index]
        before = self._target.copy()
        engine = layer_engine(self._checkpoint, index, threads=self._threads)
        between = advance(engine, self._target)
        # What sub-blocks read: the streams as they grow, or as they entered a parallel layer.
        read = self._stream.copy() if layer.parallel else self._stream
        streams = {
            "attention": (before, between),
            "ffn": (before if layer.parallel else between, self._target),
        }
        for sub_block in SUB_BLOCKS:
            part = getattr(layer, sub_block)
            entering, wanted = streams[sub_block]
            if isinstance(part, LinkConfig):
                self._pass(index, sub_block, read)
            elif isinstance(part, RoutedFfnConfig):
                self._enter_experts(index, part, read, entering)
                self._leave_experts(index, part, read, wanted)
            elif part is not None:
                self._enter(index, sub_block, part, read, entering)
                self._leave(index, sub_block, read, wanted)

    def _pass(self, index: int, sub_block: SubBlock, read: Hidden) -> None:
        for rows, after, _ in chunks(self._engine(index, sub_block), read):
            self._stream[rows] = grown(self._stream[rows], read[rows], after)

    def _enter(
        self,
        index: int,
        sub_block: SubBlock,
        part: AttentionConfig | FfnConfig,
        read: Hidden,
        entering: Hidden,
    ) -> None:
        """The matrices that make queries, keys and values, or neurons."""
        names = ("q", "k", "v") if isinstance(part, AttentionConfig) else part.neuron_parts
        matrices = [f"layers.{index}.{sub_block}.{name}.weight" for name in names]
        matrices = [name for name in matrices if self._zeros.shares.get(name)]
        if not matrices:
            return
        change, gram = self._entry(index, sub_block, read, entering)
        inputs = Inputs(gram)
        for name in matrices:
            self._solve(name, self._entering_as_before(name, change), inputs)

    def _entry(
        self, index: int, sub_block: SubBlock, read: Hidden, entering: Hidden
    ) -> tuple[Array, Array]:
        """What gives the drift of a sub-block's input from the input; its second moments."""
        parts = []
        for some in self._parts:
            sums = self._sums(read.shape[-1], read.shape[-1])
            for first in range(some.start, some.stop, ROWS):
                rows = slice(first, min(first + ROWS, some.stop))
                inputs = self._normed(index, sub_block, read[rows])
                sums.add(inputs, (self._normed(index, sub_block, entering[rows]) - inputs,))
            parts += sums.evidence()
        check_evidence(f"layers.{index}.{sub_block}", *parts)
        change = self._change(parts, 2 * SUB_BLOCKS.index(sub_block))
        return change, parts[0].gram + parts[1].gram

    def _entering_as_before(self, name: str, change: Array) -> Array:
        """A matrix that gives of the sparse stream what it gave of the other one."""
        weight = self._checkpoint.read_f32(name).astype(np.float64)
        return weight + weight @ change

    def _enter_experts(
        self, index: int, ffn: RoutedFfnConfig, read: Hidden, entering: Hidden
    ) -> None:
        """The matrices that make the neurons of experts; each reads the tokens that run it."""
        prefix = f"layers.{index}.ffn"
        matrices = {
            expert: [f"{prefix}.experts.{expert}.{part}.weight" for part in one.neuron_parts]
            for expert, one in enumerate(map(ffn.expert, range(len(ffn.experts))))
        }
        if not any(map(self._zeros.shares.get, itertools.chain(*matrices.values()))):
            return
        change, gram_of_all = self._entry(index, "ffn", read, entering)
        tap = "ffn_experts"
        flow = chunks(self._engine(index, "ffn"), read, capture=[tap])
        runs = np.concatenate([captured[tap] > 0 for _, _, captured in flow])
        for expert, names in matrices.items():
            own = self._normed(index, "ffn", read[runs[..., expert]])
            moments = Moments(own.shape[-1], products=self._products, threads=self._threads)
            moments.update(own)
            inputs = Inputs(moments.gram if len(own) else gram_of_all)
            for name in names:
                if self._zeros.shares.get(name):
                    self._solve(name, self._entering_as_before(name, change), inputs)

    def _leave_experts(
        self, index: int, ffn: RoutedFfnConfig, read: Hidden, wanted: Hidden
    ) -> None:
        """The projections of experts, one after the other; the sparse stream moves on."""
        prefix = f"layers.{index}.ffn"
        output = Output(self._checkpoint, index, "ffn")
        engine = self._engine(index, "ffn")
        evidence = ExpertEvidence.gather(None, engine, ffn, output, self._stream, read, wanted)
        weights = []

        def solve(expert: int, wishes: list[list[Evidence]]) -> list[Fit]:
            (parts,) = wishes
            name = f"{prefix}.experts.{expert}.down.weight"
            old = new = self._checkpoint.read_f32(name)
            if self._zeros.shares.get(name):
                gram = parts[0].gram + parts[1].gram
                inputs = Inputs(gram if gram.any() else np.eye(len(gram)))
                new = self._solve(name, old + output.change(self._change(parts, 3)), inputs)
            weights.append([new])
            change = output.seen((new - old).astype(np.float64))
            return [(change, (change, change))]

        length = read.shape[1]
        parts = [slice(part.start * length, part.stop * length) for part in self._parts]
        evidence.fit(
            prefix,
            len(ffn.experts),
            parts,
            solve,
            products=self._products,
            threads=self._threads,
        )
        added = evidence.output((slice(0, evidence.rows.count),), weights)
        self._stream[:] = output.joined(self._stream, added.reshape(self._stream.shape))

    def _leave(self, index: int, sub_block: SubBlock, read: Hidden, wanted: Hidden) -> None:
        """The projection of a sub-block; the sparse stream moves on behind it."""
        name = f"layers.{index}.{PROJECTIONS[sub_block]}.weight"
        output = Output(self._checkpoint, index, sub_block)
        channels, width = output.weight.shape
        inputs = np.empty((*read.shape[:2], width), np.float32)
        engine, tap = self._engine(index, sub_block), TAPS[sub_block]
        parts = []
        for some in self._parts:
            sums = self._sums(width, channels)
            for rows, after, captured in chunks(engine, read[some], capture=[tap]):
                there = slice(some.start + rows.start, some.start + rows.stop)
                inputs[there] = captured[tap]
                divisors = output.divisors(self._stream[there], captured[tap])
                drift = wanted[there] - grown(self._stream[there], read[there], after)
                scale = inverse_lengths(wanted[there])
                sums.add(captured[tap] * (scale / divisors), (drift * scale,))
            parts += sums.evidence()
        check_evidence(name, *parts)
        weight = output.weight
        if self._zeros.shares.get(name):
            change = output.change(self._change(parts, 2 * SUB_BLOCKS.index(sub_block) + 1))
            weight = self._solve(name, weight + change, Inputs(parts[0].gram + parts[1].gram))
        for first in range(0, len(inputs), ROWS):
            rows = slice(first, first + ROWS)
            self._stream[rows] = output.after(self._stream[rows], inputs[rows], weight)

    def _sums(self, width: int, channels: int) -> EvidenceSums:
        return EvidenceSums(width, channels, 1, self._products, self._threads)

    def _change(self, parts: Sequence[Evidence], place: int) -> Array:
        """What makes up for the drift as far as held-out text confirms it, [outputs, inputs].

        ``place`` is the index in ``_dampings``.
        """
        start = np.zeros(parts[0].cross.shape[::-1])
        if not self._refit:
            return start
        nearest = min(DAMPINGS, key=lambda one: abs(one - self._dampings[place]))
        found = choose(parts, start, first=nearest)
        if found.damping is not None:
            self._dampings[place] = found.damping
        return found.weight

    def _solve(self, name: str, wanted: npt.NDArray[Any], inputs: Inputs) -> Hidden:
        """Find a matrix and keep it as the checkpoint will store it."""
        share = self._zeros.shares[name]
        weight = self._solver.solve(wanted.astype(np.float32), inputs, share)
        self._found[name] = weight.astype(DTYPES[self._checkpoint.tensors[name].dtype])
        self.weights[name] = Tensor.of(self._found[name])
        return self._found[name].astype(np.float32)

    def _normed(self, index: int, sub_block: SubBlock, stream: Hidden) -> Hidden:
        """What the matrices at the entry of a sub-block read of a stream."""
        name = f"layers.{index}.{sub_block}.norm"
        has_norm = f"{name}.weight" in self._checkpoint.tensors
        return normed(self._checkpoint, name, stream) if has_norm else stream

    def _engine(self, index: int, sub_block: SubBlock) -> Engine:
        """The sub-block with the weights found so far."""
        return sub_block_engine(self._sparse, index, sub_block, threads=self._threads)

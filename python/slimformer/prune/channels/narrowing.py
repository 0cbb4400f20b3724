"""Repair of a model that has lost channels of its residual stream.

The text flows through the whole model and the narrow one side by side. In each sub-block the
matrices that read the stream are first told what the channels that went had to say: the dense
input is regressed on the narrow one, and the regression is folded into them. Then the projection
is refitted so that the narrow stream meets the kept channels of the dense one.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint, Tensor
from slimformer.config import LinkConfig, RoutedFfnConfig
from slimformer.engine import Engine, Moments
from slimformer.errors import DataError
from slimformer.progress import Progress, silent
from slimformer.prune.channels.choice import readers
from slimformer.prune.outputs import PROJECTIONS, SUB_BLOCKS, Output, SubBlock, normalised
from slimformer.prune.refit import Evidence, choose
from slimformer.prune.repair import in_parts
from slimformer.prune.stream import (
    TAPS,
    Hidden,
    Windows,
    chunks,
    embed,
    inverse_lengths,
    layer_engine,
    precision,
)

Array = npt.NDArray[np.float64]

PARTS = 4
"""Parts of the text, of which the last is held out when a damping is chosen."""

FIRST_DAMPINGS = {"readers": 0.01, "projections": 3.0}
"""Where the search for dampings begins. Kept channels know much of those that went; the columns of
a projection know little of what the stream lacks."""


def repair_narrow(
    dense: Checkpoint,
    narrow: Checkpoint,
    channels: tuple[int, ...],
    windows: Windows,
    *,
    threads: int = 0,
    progress: Progress = silent,
) -> Checkpoint:
    """New weights for all that reads and writes the stream of ``narrow``.

    Parameters
    ----------
    dense, narrow
        The model before and after surgery that removed channels, and nothing else.
    channels
        Those that stayed.
    windows
        Calibration tokens, [windows, tokens].

    Raises
    ------
    DataError
        Activations on the text that are not finite.
    """
    run = _Narrowing(dense, narrow, channels, windows, threads)
    n_layers = len(dense.config.layers)
    for index in range(n_layers):
        progress("repair channels", index, n_layers)
        run.layer(index)
    progress("repair channels", n_layers, n_layers)
    run.head()
    return run.narrow


class _Narrowing:
    """Both streams on their way through the layers, and the narrow model as it is so far."""

    def __init__(
        self,
        dense: Checkpoint,
        narrow: Checkpoint,
        channels: tuple[int, ...],
        windows: Windows,
        threads: int,
    ) -> None:
        self.narrow = narrow
        self._dense = dense
        self._channels = np.asarray(channels)
        self._threads = threads
        self._products = precision(dense)
        parts = in_parts(windows, PARTS)
        windows = np.concatenate(parts)
        ends = np.cumsum([len(part) for part in parts]).tolist()
        self._parts = [slice(start, end) for start, end in itertools.pairwise([0, *ends])]
        self._target = embed(dense, windows)
        self._stream = embed(narrow, windows)

    def layer(self, index: int) -> None:
        """Take both streams through a layer, and repair it on the way."""
        layer = self._dense.config.layers[index]
        entered, self._target, between = self._target, *self._through_dense(index)
        read = self._stream.copy() if layer.parallel else self._stream
        for sub_block in SUB_BLOCKS:
            part = getattr(layer, sub_block)
            if part is None:
                continue
            first = sub_block == "attention" or layer.parallel
            self._refit_readers(f"layers.{index}.{sub_block}", entered if first else between, read)
            wanted = between if sub_block == "attention" else self._target
            if isinstance(part, (LinkConfig, RoutedFfnConfig)):
                self._pass_link(index, sub_block, read)
            else:
                self._refit_projection(index, sub_block, wanted[..., self._channels], read)

    def head(self) -> None:
        """Tell the head what the last stream lacks; one that is tied stays what it is."""
        if not self._dense.config.tied_head:
            self._refit_readers("", self._target, self._stream)

    def _through_dense(self, index: int) -> tuple[Hidden, Hidden]:
        """The dense stream after a layer, and between its sub-blocks."""
        after, between = np.empty_like(self._target), np.empty_like(self._target)
        engine = layer_engine(self._dense, index, threads=self._threads)
        for rows, output, captured in chunks(engine, self._target, capture=["ffn_input"]):
            after[rows], between[rows] = output, captured["ffn_input"]
        return after, between

    def _refit_readers(self, place: str, dense_stream: Hidden, narrow_stream: Hidden) -> None:
        """Fold what kept channels know of the others into the matrices that read the stream."""
        names, norm = readers(self._dense, place)
        if any(len(self._dense.tensors[name].shape) == 1 for name in names):
            return  # a diagonal link reads each channel by itself
        parts = []
        for part in self._parts:
            wanted = self._input(self._dense, norm, dense_stream[part])
            given = self._input(self.narrow, norm, narrow_stream[part])
            parts.append(self._evidence(place, given, wanted))
        selection = np.eye(self._dense.config.n_channels)[:, self._channels]
        first = FIRST_DAMPINGS["readers"]
        known = choose(parts, selection, first=first).weight  # [dense channels, kept channels]
        for name in names:
            matrix = self._dense.read_f32(name)
            if name.endswith("link.weight"):  # writes the stream, too
                matrix = matrix[self._channels]
            self._store(name, matrix @ known)

    def _refit_projection(
        self, index: int, sub_block: SubBlock, wanted: Hidden, read: Hidden
    ) -> None:
        """Solve for the projection that takes the narrow stream to ``wanted``."""
        name = f"layers.{index}.{PROJECTIONS[sub_block]}"
        output = Output(self.narrow, index, sub_block)
        tap = TAPS[sub_block]
        engine = self._sub_block_engine(index, sub_block)
        inputs = np.concatenate(
            [captured[tap] for _, _, captured in chunks(engine, read, capture=[tap])]
        )
        parts = []
        for part in self._parts:
            after = output.after(self._stream[part], inputs[part], output.weight)
            divisors = output.divisors(self._stream[part], inputs[part])
            # The next layer normalises the stream: an error counts relative to it.
            scale = inverse_lengths(wanted[part]) / divisors
            drift = (wanted[part] - after) * divisors
            parts.append(self._evidence(name, inputs[part] * scale, drift * scale))
        change = np.zeros(output.weight.shape)
        found = choose(parts, change, first=FIRST_DAMPINGS["projections"])
        stored = DTYPES[self.narrow.tensors[f"{name}.weight"].dtype]
        for part, unseen in zip(self._parts, found.without, strict=True):
            weight = (output.weight + output.change(unseen)).astype(stored).astype(np.float32)
            self._stream[part] = output.after(self._stream[part], inputs[part], weight)
        self._store(f"{name}.weight", output.weight + output.change(found.weight))

    def _pass_link(self, index: int, sub_block: SubBlock, read: Hidden) -> None:
        engine = self._sub_block_engine(index, sub_block)
        for rows, after, _ in chunks(engine, read):
            self._stream[rows] += after - read[rows]

    def _sub_block_engine(self, index: int, sub_block: SubBlock) -> Engine:
        return layer_engine(
            self.narrow,
            index,
            attention=sub_block == "attention",
            ffn=sub_block == "ffn",
            threads=self._threads,
        )

    def _input(self, checkpoint: Checkpoint, norm: str, stream: Hidden) -> Hidden:
        """What the matrices behind a norm read; the stream itself where there is none."""
        if norm not in checkpoint.tensors:
            return stream
        gains = checkpoint.read_f32(norm) + np.float32(checkpoint.config.norm_offset)
        values: Hidden = normalised(checkpoint.config, stream) * gains
        return values

    def _evidence(self, name: str, inputs: Hidden, wanted: Hidden) -> Evidence:
        """Second moments of two arrays [windows, tokens, width]."""
        moments = Moments(
            inputs.shape[-1],
            target_width=wanted.shape[-1],
            products=self._products,
            threads=self._threads,
        )
        moments.update(
            inputs.reshape(-1, inputs.shape[-1]),
            np.ascontiguousarray(wanted).reshape(-1, wanted.shape[-1]),
        )
        energy = float(np.einsum("wtc,wtc->", wanted, wanted, dtype=np.float64))
        gram, cross = moments.gram, moments.cross
        if not (np.isfinite(gram).all() and np.isfinite(cross).all() and np.isfinite(energy)):
            raise DataError(f"{name}: activations on the calibration text are not finite")
        return Evidence(gram, cross, energy, moments.count)

    def _store(self, name: str, values: npt.NDArray[Any]) -> None:
        """Put a tensor into the narrow model as it will be stored."""
        stored = values.astype(DTYPES[self.narrow.tensors[name].dtype])
        tensors = {**self.narrow.tensors, name: Tensor.of(stored)}
        self.narrow = dataclasses.replace(self.narrow, tensors=tensors)

"""``balance``: the same model, its inner scales moved to where int8 rounds least.

A product w'x of a group in int8 is off by rounding w, as much as w is long, times the length of x,
and by rounding x times the length of w: by |w| |x|. A channel may be multiplied in all that reads
it and divided in the norm before it, and a gated neuron in its row of up and its column of down: by
Cauchy and Schwarz the product of the lengths is least where both rise and fall together, at scales
sqrt(x / w). That is SmoothQuant's migration (Xiao et al. 2023, arXiv 2211.10438) with root mean
squares in place of maxima, since groups are rotated before they are rounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint, Tensor
from slimformer.config import FfnConfig, LayerConfig, LinkConfig
from slimformer.progress import Progress, silent
from slimformer.prune.calibrate import calibration_windows
from slimformer.prune.channels.reading import HEAD, readers
from slimformer.prune.evidence import check_finite
from slimformer.prune.outputs import SUB_BLOCKS, SubBlock, normed
from slimformer.prune.sample import sample_calibration
from slimformer.prune.stream import Hidden, chunks, embed, layer_engine

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

TOKENS = 8192
"""A mean square for each channel takes few."""

MOST = 8
"""A scale is at most 2 to this power away from the layer's median: what text never wakes says
nothing about how small it may become."""

LEAST = 1e-24
"""Mean squares below this are taken for it."""


def balance(
    checkpoint: Checkpoint,
    *,
    calibration: Sequence[str] | None = None,
    tokens: int = TOKENS,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> Checkpoint:
    """The same model, scaled within so that int8 weights and activations lose less.

    Scales are powers of two, so that nothing is rounded: in float32 and bfloat16 the model says the
    same bit for bit, but where norm weights count from 1 (Gemma). int4 is not helped: its groups
    are smaller, and weights that came from four bits fit them best as they are.

    Parameters
    ----------
    checkpoint
        The model.
    calibration, seed
        As for ``plan``.
    tokens
        About how many tokens to measure on, and for the model to write where there is no text.

    Raises
    ------
    DataError
        Calibration text that cannot be used.
    """
    if calibration is None and checkpoint.config.causal:
        calibration = sample_calibration(
            checkpoint, tokens=tokens, seed=seed, threads=threads, progress=progress
        )
    windows = calibration_windows(checkpoint, calibration, tokens, seed, threads, progress)
    hidden = embed(checkpoint, windows)
    balanced = _Balanced(checkpoint)
    layers = checkpoint.config.layers
    for index, layer in enumerate(layers):
        progress("balance layers", index, len(layers))
        inputs = _mean_squares(checkpoint, index, layer, hidden, threads)
        prefix = f"layers.{index}."
        for name, squares in inputs.items():
            check_finite(prefix + name, squares)
            if name == "neurons":
                balanced.scale_neurons(f"{prefix}ffn.", squares)
            else:
                balanced.scale_channels(*readers(checkpoint, prefix + name), squares)
    if checkpoint.config.final_norm and not checkpoint.config.tied_head:
        squares = _mean_square(normed(checkpoint, "final_norm", hidden))
        balanced.scale_channels(*readers(checkpoint, HEAD), squares)
    progress("balance layers", len(layers), len(layers))
    return dataclasses.replace(checkpoint, tensors=balanced.tensors)


class _Balanced:
    """The tensors of the balanced model; they are read and scaled when asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tensors = dict(checkpoint.tensors)
        self._offset = np.float32(checkpoint.config.norm_offset)

    def scale_channels(self, matrices: Sequence[str], norm: str, squares: Array) -> None:
        """Multiply the matrices that read a norm of these mean squares, and divide the norm."""
        scales = _scales(squares, (self.tensors[name] for name in matrices))
        for name in matrices:
            self._change(name, lambda weight: weight * scales)
        self._change(
            f"{norm}.weight",
            lambda gains: (gains + self._offset) / scales - self._offset,
            is_exact=self._offset == 0,
        )
        self._change(f"{norm}.bias", lambda bias: bias / scales)

    def scale_neurons(self, prefix: str, squares: Array) -> None:
        """Multiply the columns that read neurons of these mean squares, and divide their rows."""
        scales = _scales(squares, [self.tensors[f"{prefix}down.weight"]])
        self._change(f"{prefix}down.weight", lambda weight: weight * scales)
        self._change(f"{prefix}up.weight", lambda weight: weight / scales[:, None])
        self._change(f"{prefix}up.bias", lambda bias: bias / scales)

    def _change(
        self, name: str, make: Callable[[Floats], Floats], *, is_exact: bool = True
    ) -> None:
        """Replace a tensor, if there is one, by what ``make`` gives of its values."""
        if name not in self.tensors:
            return
        tensor = self.tensors[name]
        # float16 has few powers of two to spare.
        keeps_type = is_exact and tensor.dtype != "f16"
        self.tensors[name] = tensor.mapped(make, dtype=tensor.dtype if keeps_type else "f32")


def _scales(squares: Array, matrices: Iterable[Tensor]) -> Floats:
    """Powers of two to multiply the columns by that read inputs of these mean squares."""
    rows = 0
    sums = np.zeros_like(squares)
    for matrix in matrices:
        weight = matrix.read().astype(np.float64)
        sums += np.einsum("rc,rc->c", weight, weight)
        rows += len(weight)
    ratio = np.maximum(squares, LEAST) / np.maximum(sums / rows, LEAST)
    powers = np.log2(ratio) / 4
    powers = np.rint(np.clip(powers - np.median(powers), -MOST, MOST))
    return np.exp2(powers).astype(np.float32)


def _mean_squares(
    checkpoint: Checkpoint, index: int, layer: LayerConfig, hidden: Hidden, threads: int
) -> dict[str, Array]:
    """Of what each sub-block reads behind a norm, and of the neurons of a gated FFN.

    ``hidden`` is moved through the layer.
    """
    sums: dict[str, Array] = {}
    is_gated = isinstance(layer.ffn, FfnConfig) and layer.ffn.gated
    capture = ["ffn_input", *(["ffn_neurons"] if is_gated else [])]
    normalised = [name for name in SUB_BLOCKS if _reads_norm(layer, name)]
    engine = layer_engine(checkpoint, index, threads=threads)
    for rows, after, captured in chunks(engine, hidden, capture=capture):
        between = hidden[rows] if layer.parallel else captured["ffn_input"]
        streams = {"attention": hidden[rows], "ffn": between}
        seen: dict[str, Floats] = {
            name: normed(checkpoint, f"layers.{index}.{name}.norm", streams[name])
            for name in normalised
        }
        if is_gated:
            seen["neurons"] = captured["ffn_neurons"]
        for name, values in seen.items():
            share = len(values) / len(hidden)
            sums[name] = sums.get(name, 0.0) + share * _mean_square(values)
        hidden[rows] = after
    return sums


def _reads_norm(layer: LayerConfig, sub_block: SubBlock) -> bool:
    part = getattr(layer, sub_block)
    absent = part is None or isinstance(part, LinkConfig)
    return not absent and part.norm_place in ("before", "both")


def _mean_square(values: Floats) -> Array:
    """Over all tokens, [width]; overflow is left to show in it."""
    with np.errstate(all="ignore"):
        rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
        mean: Array = np.einsum("tc,tc->c", rows, rows) / len(rows)
    return mean

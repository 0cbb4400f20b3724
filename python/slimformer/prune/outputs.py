"""What a sub-block adds to the residual stream: its projection's output.

In some families it is normalised before it is added, or the stream is afterwards. A norm divides
a token's values by their length and multiplies channels by gains. To first order it is a scaling,
so errors of the output are judged, and made up for, as the stream sees them.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig, ModelConfig, RoutedFfnConfig

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]
SubBlock = Literal["attention", "ffn"]
SUB_BLOCKS: tuple[SubBlock, ...] = get_args(SubBlock)

PROJECTIONS: dict[str, str] = {"attention": "attention.o", "ffn": "ffn.down"}
"""The map of each sub-block that reads its units."""

LEAST_GAIN = 0.1
"""Relative to the root mean square of the gains: a channel that the norm all but silences is not
moved far for the little that comes of it."""


class Output:
    """The projection of one sub-block and the norm behind it."""

    def __init__(self, checkpoint: Checkpoint, index: int, sub_block: SubBlock) -> None:
        name = f"layers.{index}.{PROJECTIONS[sub_block]}"
        part = getattr(checkpoint.config.layers[index], sub_block)
        assert isinstance(part, (AttentionConfig, FfnConfig, RoutedFfnConfig))
        self._config = checkpoint.config
        self.weight: Floats = _weight(checkpoint, name, part)  # [channels, columns]
        self._bias = _read(checkpoint, f"{name}.bias", 0.0)
        self._place = part.norm_place
        norm = f"layers.{index}.{sub_block}.post_norm"
        gains = np.ones(len(self.weight), np.float32)
        if self._has_norm:
            gains = checkpoint.read_f32(f"{norm}.weight") + np.float32(self._config.norm_offset)
        self._gains: Floats = gains
        self._shift = _read(checkpoint, f"{norm}.bias", 0.0)

    @property
    def _has_norm(self) -> bool:
        return self._place != "before"

    @property
    def stream_weight(self) -> Floats:
        """The projection in terms of the stream, but for the division, [channels, columns]."""
        weight: Floats = self.seen(self.weight)
        return weight

    def seen(self, change: Any) -> Any:
        """A change of the weight in terms of the stream; see ``stream_weight``."""
        return change * self._gains[:, None]

    def divisors(self, stream: Floats, inputs: Floats) -> Floats | float:
        """What a norm divides each token by, [..., 1], given the stream that is added to.

        ``inputs`` are those of the projection, [..., columns].
        """
        if not self._has_norm:
            return 1.0
        output: Floats = inputs @ self.weight.T + self._bias
        return _lengths(self._config, stream + output if self._place == "stream" else output)

    def after(self, stream: Floats, inputs: Floats, weight: Floats) -> Floats:
        """The stream afterwards, if the projection of these inputs has this weight."""
        return self.joined(stream, inputs @ weight.T)

    def joined(self, stream: Floats, product: Floats) -> Floats:
        """The stream afterwards, if that is what the projection makes of its inputs."""
        output: Floats = product + self._bias
        if self._place == "stream":
            return self._norm(stream + output)
        return stream + (self._norm(output) if self._has_norm else output)

    def _norm(self, x: Floats) -> Floats:
        normed: Floats = normalised(self._config, x) * self._gains + self._shift
        return normed

    def change(self, stream_change: Array) -> Array:
        """A change of ``stream_weight`` as one of the weight."""
        if not self._has_norm:
            return stream_change
        gains = self._gains.astype(np.float64)
        least = LEAST_GAIN**2 * float(np.mean(gains**2))
        return stream_change * (gains / (gains**2 + least))[:, None]


def _weight(
    checkpoint: Checkpoint, name: str, part: AttentionConfig | FfnConfig | RoutedFfnConfig
) -> Floats:
    """The projection; those of experts side by side, as their weighted neurons are tapped."""
    if not isinstance(part, RoutedFfnConfig):
        return checkpoint.read_f32(f"{name}.weight")
    block, _, last = name.rpartition(".")
    names = [f"{block}.experts.{expert}.{last}.weight" for expert in range(len(part.experts))]
    return np.concatenate([checkpoint.read_f32(one) for one in names], axis=1)


def _read(checkpoint: Checkpoint, name: str, default: float) -> Any:
    return checkpoint.read_f32(name) if name in checkpoint.tensors else np.float32(default)


def normed(checkpoint: Checkpoint, norm: str, stream: Floats) -> Floats:
    """The stream behind the norm of this name; normalised alone where that has no tensors."""
    values = normalised(checkpoint.config, stream)
    if f"{norm}.weight" in checkpoint.tensors:
        values *= checkpoint.read_f32(f"{norm}.weight") + np.float32(checkpoint.config.norm_offset)
    if f"{norm}.bias" in checkpoint.tensors:
        values += checkpoint.read_f32(f"{norm}.bias")
    return values


def normalised(config: ModelConfig, stream: Floats) -> Floats:
    """The stream as the model's norm leaves it, but for weights and bias."""
    lengths = _lengths(config, stream)
    if config.norm == "layer":
        stream = stream - stream.mean(axis=-1, keepdims=True)
    return stream / lengths


def _lengths(config: ModelConfig, x: Floats) -> Floats:
    """What the model's norm divides [..., channels] by, [..., 1]."""
    if config.norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    squares = np.einsum("...c,...c->...", x, x)[..., None]
    lengths: Floats = np.sqrt(squares / config.norm_divisor + np.float32(config.norm_eps))
    return lengths

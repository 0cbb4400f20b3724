"""What a model looks like: every dimension belongs to a layer, absence is ``None``.

These dataclasses are the one schema of a model's shape. Checkpoint readers produce
them, surgery derives new ones, the C++ core reads their attributes when it packs.
Tensor names are Slimformer's own and independent of any file format:

========================================  ================================================
``embedding.weight``                      [vocab_size, n_channels]
``layers.{i}.attention.norm.weight``      [n_channels]
``layers.{i}.attention.q.weight``         [n_heads * head_dim, n_channels]
``layers.{i}.attention.k.weight``         [n_kv_heads * head_dim, n_channels]
``layers.{i}.attention.v.weight``         [n_kv_heads * value_dim, n_channels]
``layers.{i}.attention.o.weight``         [n_channels, n_heads * value_dim]
``layers.{i}.ffn.norm.weight``            [n_channels]
``layers.{i}.ffn.gate.weight``, ``up``    [n_neurons, n_channels]
``layers.{i}.ffn.down.weight``            [n_channels, n_neurons]
``layers.{i}.{sub_block}.{part}.bias``    [rows of the weight], where the config says so
``layers.{i}.{sub_block}.link.weight``    [n_channels, n_channels] full, [n_channels] diagonal
``layers.{i}.{sub_block}.link.down``      [rank, n_channels], low rank
``layers.{i}.{sub_block}.link.up``        [n_channels, rank], low rank
``final_norm.weight``                     [n_channels]
``head.weight``                           [vocab_size, n_channels], absent when tied
========================================  ================================================

Weights are stored as [outputs, inputs]. Rotary pairs are (j, j + rotary_dim / 2), the
convention of Hugging Face.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from slimformer.errors import ConfigError

MAX_DIMENSION = 1 << 24
"""No single dimension of a model may exceed this; hostile files claim more."""

MAX_LAYERS = 4096

LinkKind = Literal["full", "low_rank", "diagonal"]


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_dimension(name: str, value: object) -> None:
    _check(
        isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_DIMENSION,
        f"{name}: expected an integer from 1 to {MAX_DIMENSION}, found {value!r}",
    )


def _check_positive(name: str, value: object) -> None:
    _check(
        isinstance(value, (int, float)) and math.isfinite(value) and value > 0,
        f"{name}: expected a finite number above 0, found {value!r}",
    )


@dataclasses.dataclass(frozen=True)
class LinearRopeScaling:
    """Positions divided by ``factor`` (position interpolation, Chen et al. 2023)."""

    factor: float

    def __post_init__(self) -> None:
        _check_positive("rope scaling factor", self.factor)


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3.1's scaling: low frequencies stretched, high ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        _check_positive("rope scaling factor", self.factor)
        _check_positive("rope low_freq_factor", self.low_freq_factor)
        _check_positive("rope high_freq_factor", self.high_freq_factor)
        _check_dimension("rope original_max_positions", self.original_max_positions)
        _check(
            self.low_freq_factor < self.high_freq_factor,
            f"rope scaling: expected low_freq_factor < high_freq_factor, found "
            f"{self.low_freq_factor} and {self.high_freq_factor}",
        )


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding over the first ``rotary_dim`` entries of a head."""

    rotary_dim: int
    theta: float = 10000.0
    scaling: LinearRopeScaling | Llama3RopeScaling | None = None

    def __post_init__(self) -> None:
        _check_dimension("rotary_dim", self.rotary_dim)
        _check(self.rotary_dim % 2 == 0, f"rotary_dim: expected even, found {self.rotary_dim}")
        _check_positive("rope theta", self.theta)

    def inverse_frequencies(self) -> npt.NDArray[np.float32]:
        """Radians per position of each rotary pair, float32 [rotary_dim / 2]."""
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float32) / np.float32(self.rotary_dim)
        base = (1.0 / (np.float32(self.theta) ** exponents)).astype(np.float32)
        scaling = self.scaling
        if scaling is None:
            return base
        if isinstance(scaling, LinearRopeScaling):
            return (base / np.float32(scaling.factor)).astype(np.float32)
        wavelength = 2 * math.pi / base
        turns = scaling.original_max_positions / wavelength
        smooth = (turns - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        smooth = np.clip(smooth, 0.0, 1.0)
        return ((1 - smooth) * base / scaling.factor + smooth * base).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Attention of one layer: any number of query heads on any KV heads.

    ``q_to_kv[h]`` is the KV head that query head ``h`` reads; a ragged map is as good as a
    uniform one. ``head_dim`` is the width of a query or key head, ``value_dim`` that of a
    value head. ``scale`` multiplies the scores.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    value_dim: int
    q_to_kv: tuple[int, ...]
    scale: float
    rope: RopeConfig | None
    qkv_bias: bool = False
    output_bias: bool = False

    def __post_init__(self) -> None:
        for name in ("n_heads", "n_kv_heads", "head_dim", "value_dim"):
            _check_dimension(name, getattr(self, name))
        _check_positive("attention scale", self.scale)
        _check(
            len(self.q_to_kv) == self.n_heads,
            f"q_to_kv: expected {self.n_heads} entries, one a query head, "
            f"found {len(self.q_to_kv)}",
        )
        _check(
            set(self.q_to_kv) == set(range(self.n_kv_heads)),
            f"q_to_kv: expected every KV head from 0 to {self.n_kv_heads - 1} to be read "
            f"and no other, found {sorted(set(self.q_to_kv))}",
        )
        if self.rope is not None:
            _check(
                self.rope.rotary_dim <= self.head_dim,
                f"rotary_dim: expected at most head_dim {self.head_dim}, "
                f"found {self.rope.rotary_dim}",
            )


@dataclasses.dataclass(frozen=True)
class FfnConfig:
    """Gated feed-forward sub-block of one layer: ``down(silu(gate(x)) * up(x))``."""

    n_neurons: int
    bias: bool = False

    def __post_init__(self) -> None:
        _check_dimension("n_neurons", self.n_neurons)


@dataclasses.dataclass(frozen=True)
class LinkConfig:
    """A linear map of a sub-block's normalised input that stands in for the sub-block.

    ``rank`` is given for ``low_rank`` and ``None`` for the other kinds.
    """

    kind: LinkKind
    rank: int | None = None

    def __post_init__(self) -> None:
        _check(
            self.kind in ("full", "low_rank", "diagonal"),
            f"link kind: expected full, low_rank or diagonal, found {self.kind!r}",
        )
        if self.kind == "low_rank":
            _check(self.rank is not None, "link: expected a rank with kind low_rank, found none")
            _check_dimension("link rank", self.rank or 0)
        else:
            _check(self.rank is None, f"link: expected no rank with kind {self.kind}")


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """One decoder layer; a sub-block may be absent (``None``) or replaced by a link."""

    attention: AttentionConfig | LinkConfig | None
    ffn: FfnConfig | LinkConfig | None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a whole model.

    ``norm_divisor`` is what RMSNorm divides the sum of squares by: the residual width that
    the model was trained with, also after channels have been removed.
    """

    family: str
    vocab_size: int
    n_channels: int
    norm_divisor: int
    norm_eps: float
    tied_head: bool
    max_positions: int
    layers: tuple[LayerConfig, ...]

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_channels", "norm_divisor", "max_positions"):
            _check_dimension(name, getattr(self, name))
        _check_positive("norm_eps", self.norm_eps)
        _check(
            self.norm_divisor >= self.n_channels,
            f"norm_divisor: expected at least n_channels {self.n_channels}, "
            f"found {self.norm_divisor}",
        )
        _check(
            len(self.layers) <= MAX_LAYERS,
            f"layers: expected at most {MAX_LAYERS}, found {len(self.layers)}",
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor the model consists of, in file order."""
        return dict(self._tensors())

    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def non_embedding_parameters(self) -> int:
        """Number of weights outside the embedding and the head."""
        return sum(
            math.prod(shape)
            for name, shape in self.tensor_shapes().items()
            if name not in ("embedding.weight", "head.weight")
        )

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        d = self.n_channels
        yield "embedding.weight", (self.vocab_size, d)
        for index, layer in enumerate(self.layers):
            if layer.attention is not None:
                prefix = f"layers.{index}.attention"
                yield f"{prefix}.norm.weight", (d,)
                if isinstance(layer.attention, LinkConfig):
                    yield from _link_tensors(prefix, layer.attention, d)
                else:
                    yield from _attention_tensors(prefix, layer.attention, d)
            if layer.ffn is not None:
                prefix = f"layers.{index}.ffn"
                yield f"{prefix}.norm.weight", (d,)
                if isinstance(layer.ffn, LinkConfig):
                    yield from _link_tensors(prefix, layer.ffn, d)
                else:
                    yield from _ffn_tensors(prefix, layer.ffn, d)
        yield "final_norm.weight", (d,)
        if not self.tied_head:
            yield "head.weight", (self.vocab_size, d)


def _link_tensors(
    prefix: str, link: LinkConfig, channels: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    if link.kind == "full":
        yield f"{prefix}.link.weight", (channels, channels)
    elif link.kind == "diagonal":
        yield f"{prefix}.link.weight", (channels,)
    else:
        assert link.rank is not None
        yield f"{prefix}.link.down", (link.rank, channels)
        yield f"{prefix}.link.up", (channels, link.rank)


def _attention_tensors(
    prefix: str, attention: AttentionConfig, channels: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    outputs = {
        "q": attention.n_heads * attention.head_dim,
        "k": attention.n_kv_heads * attention.head_dim,
        "v": attention.n_kv_heads * attention.value_dim,
    }
    for part, rows in outputs.items():
        yield f"{prefix}.{part}.weight", (rows, channels)
        if attention.qkv_bias:
            yield f"{prefix}.{part}.bias", (rows,)
    yield f"{prefix}.o.weight", (channels, attention.n_heads * attention.value_dim)
    if attention.output_bias:
        yield f"{prefix}.o.bias", (channels,)


def _ffn_tensors(
    prefix: str, ffn: FfnConfig, channels: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("gate", "up"):
        yield f"{prefix}.{part}.weight", (ffn.n_neurons, channels)
        if ffn.bias:
            yield f"{prefix}.{part}.bias", (ffn.n_neurons,)
    yield f"{prefix}.down.weight", (channels, ffn.n_neurons)
    if ffn.bias:
        yield f"{prefix}.down.bias", (channels,)

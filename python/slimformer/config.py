"""What a model looks like: every dimension belongs to a layer, absence is ``None``.

These dataclasses are the one schema of a model's shape. Checkpoint readers produce
them, surgery derives new ones, the C++ core reads their attributes when it packs.
Tensor names are Slimformer's own and independent of any file format:

==========================================  ==============================================
``embedding.weight``                        [vocab_size, n_channels]
``positions.weight``                        [max_positions + position_offset, n_channels], learned
``token_types.weight``                      [token_types, n_channels]
``embedding_norm.weight``                   [n_channels]
``layers.{i}.attention.norm.weight``        [n_channels]
``layers.{i}.attention.q.weight``           [n_heads * head_dim, n_channels]
``layers.{i}.attention.k.weight``           [n_kv_heads * head_dim, n_channels]
``layers.{i}.attention.v.weight``           [n_kv_heads * value_dim, n_channels]
``layers.{i}.attention.q_norm.weight``      [head_dim], or [n_heads * head_dim] over the whole width
``layers.{i}.attention.k_norm.weight``      [head_dim], or [n_kv_heads * head_dim]
``layers.{i}.attention.o.weight``           [n_channels, n_heads * value_dim]
``layers.{i}.ffn.norm.weight``              [n_channels]
``layers.{i}.ffn.gate.weight``, ``up``      [n_neurons, n_channels], ``gate`` where it is gated
``layers.{i}.ffn.down.weight``              [n_channels, n_neurons]
``layers.{i}.ffn.router.weight``            [n_experts, n_channels], where it is routed
``layers.{i}.ffn.experts.{e}.{part}``       the same parts for each expert
``layers.{i}.{sub_block}.{part}.bias``      [rows of the weight], where the config says so
``layers.{i}.{sub_block}.post_norm.weight`` [n_channels], where outputs are normalised
``layers.{i}.{sub_block}.link.weight``      [n_channels, n_channels] full, [n_channels] diagonal
``layers.{i}.{sub_block}.link.down``        [rank, n_channels], low rank
``layers.{i}.{sub_block}.link.up``          [n_channels, rank], low rank
``layers.{i}.{sub_block}.link.bias``        [n_channels], constant; such a link has no norm
``final_norm.weight``                       [n_channels]
``head.weight``                             [vocab_size, n_channels], absent when tied
==========================================  ==============================================

Layer norms have a bias of the shape of their weight. Weights are stored as [outputs, inputs].
Rotary pairs are (j, j + rotary_dim / 2), the convention of Hugging Face; those that are left of
more keep their order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar, Literal

from slimformer.checks import (
    MAX_DIMENSION,
    check,
    check_choice,
    check_dimension,
    check_flag,
    check_positive,
)
from slimformer.ffn import (
    Activation,
    FfnConfig,
    NormPlace,
    RoutedFfnConfig,
    SoftmaxOver,
    ffn_tensors,
)
from slimformer.rope import (
    DynamicRopeScaling,
    KeptPairs,
    LinearRopeScaling,
    Llama3RopeScaling,
    LongRopeScaling,
    RopeConfig,
    RopeScaling,
    YarnRopeScaling,
)

__all__ = [
    "MAX_DIMENSION",
    "MAX_LAYERS",
    "Activation",
    "AttentionConfig",
    "DynamicRopeScaling",
    "FfnConfig",
    "KeptPairs",
    "LayerConfig",
    "LinearRopeScaling",
    "LinkConfig",
    "LinkKind",
    "Llama3RopeScaling",
    "LongRopeScaling",
    "ModelConfig",
    "NormKind",
    "NormPlace",
    "QkNorm",
    "RopeConfig",
    "RopeScaling",
    "RoutedFfnConfig",
    "SoftmaxOver",
    "YarnRopeScaling",
]

MAX_LAYERS = 4096

_EMBEDDINGS = ("embedding.weight", "positions.weight", "token_types.weight", "head.weight")

LinkKind = Literal["full", "low_rank", "diagonal", "constant"]

NormKind = Literal["rms", "layer"]
"""Root mean square norm, or layer norm with its mean and bias."""

QkNorm = Literal["head", "width"]
"""Queries and keys are normalised head by head with one weight, or all heads as one vector."""


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Attention of one layer: any number of query heads on any KV heads.

    ``q_to_kv[h]`` is the KV head that query head ``h`` reads; a ragged map is as good as a
    uniform one. ``head_dim`` is the width of a query or key head, ``value_dim`` that of a
    value head. ``scale`` multiplies the scores, ``soft_cap`` c then makes them c tanh(s / c).
    With a ``window`` a position sees itself and the ``window - 1`` before it.

    A ``qk_norm`` comes before the rotation. Over the width it divides the sum of squares by
    ``q_norm_divisor`` and ``k_norm_divisor``: the widths that the model was trained with, also
    after heads have been removed.
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
    norm_place: NormPlace = "before"
    window: int | None = None
    soft_cap: float | None = None
    qk_norm: QkNorm | None = None
    q_norm_divisor: int | None = None
    k_norm_divisor: int | None = None

    def __post_init__(self) -> None:
        for name in ("n_heads", "n_kv_heads", "head_dim", "value_dim"):
            check_dimension(name, getattr(self, name))
        check_choice("norm_place", self.norm_place, NormPlace)
        if self.window is not None:
            check_dimension("window", self.window)
        if self.soft_cap is not None:
            check_positive("soft_cap", self.soft_cap)
        self._check_qk_norm()
        check_positive("attention scale", self.scale)
        check(
            len(self.q_to_kv) == self.n_heads,
            f"q_to_kv: expected {self.n_heads} entries, one a query head, "
            f"found {len(self.q_to_kv)}",
        )
        check(
            set(self.q_to_kv) == set(range(self.n_kv_heads)),
            f"q_to_kv: expected every KV head from 0 to {self.n_kv_heads - 1} to be read "
            f"and no other, found {sorted(set(self.q_to_kv))}",
        )
        if self.rope is not None:
            check(
                self.rope.rotary_dim <= self.head_dim,
                f"rotary_dim: expected at most head_dim {self.head_dim}, "
                f"found {self.rope.rotary_dim}",
            )

    def _check_qk_norm(self) -> None:
        if self.qk_norm is not None:
            check_choice("qk_norm", self.qk_norm, QkNorm)
        widths = {"q": self.n_heads * self.head_dim, "k": self.n_kv_heads * self.head_dim}
        for part, width in widths.items():
            name = f"{part}_norm_divisor"
            divisor = getattr(self, name)
            if self.qk_norm == "width":
                check_dimension(name, divisor)
                check(divisor >= width, f"{name}: expected at least {width}, found {divisor}")
            else:
                check(divisor is None, f"{name}: belongs to a qk_norm over the width only")


@dataclasses.dataclass(frozen=True)
class LinkConfig:
    """What stands in for a sub-block: a linear map of its normalised input, or a constant.

    ``rank`` is given for ``low_rank`` and ``None`` for the other kinds.
    """

    norm_place: ClassVar[NormPlace] = "before"

    kind: LinkKind
    rank: int | None = None

    def __post_init__(self) -> None:
        check_choice("link kind", self.kind, LinkKind)
        if self.kind == "low_rank":
            check(self.rank is not None, "link: expected a rank with kind low_rank, found none")
            check_dimension("link rank", self.rank or 0)
        else:
            check(self.rank is None, f"link: expected no rank with kind {self.kind}")

    @property
    def reads(self) -> bool:
        """Whether it reads the stream, behind a norm; a constant does not."""
        return self.kind != "constant"


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """One decoder layer; a sub-block may be absent (``None``) or replaced by a link.

    ``parallel``: both sub-blocks read the stream that enters the layer.
    """

    attention: AttentionConfig | LinkConfig | None
    ffn: FfnConfig | RoutedFfnConfig | LinkConfig | None
    parallel: bool = False

    def __post_init__(self) -> None:
        check_flag("parallel", self.parallel)
        places = [part.norm_place for part in (self.attention, self.ffn) if part is not None]
        check(
            not self.parallel or "stream" not in places,
            "norm_place: expected no norm of the stream in a parallel layer",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a whole model.

    ``norm_divisor`` is what RMSNorm divides the sum of squares by: the residual width that
    the model was trained with, also after channels have been removed. ``norm_offset`` is added
    to the weights of all norms. Embeddings are multiplied by ``embedding_scale``; with
    ``learned_positions`` the row of ``positions.weight`` that is ``position_offset`` after the
    position is added, and with ``token_types`` that of type 0. Logits l become c tanh(l / c)
    with a ``logit_soft_cap`` c. A model that is not ``causal`` encodes whole texts, each token
    seeing all; it has no head.
    """

    family: str
    vocab_size: int
    n_channels: int
    norm_divisor: int
    norm_eps: float
    tied_head: bool
    max_positions: int
    layers: tuple[LayerConfig, ...]
    norm: NormKind = "rms"
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    learned_positions: bool = False
    position_offset: int = 0
    logit_soft_cap: float | None = None
    causal: bool = True
    token_types: int = 0
    embedding_norm: bool = False
    final_norm: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_channels", "norm_divisor", "max_positions"):
            check_dimension(name, getattr(self, name))
        check_positive("norm_eps", self.norm_eps)
        check(
            self.norm_divisor >= self.n_channels,
            f"norm_divisor: expected at least n_channels {self.n_channels}, "
            f"found {self.norm_divisor}",
        )
        check(
            len(self.layers) <= MAX_LAYERS,
            f"layers: expected at most {MAX_LAYERS}, found {len(self.layers)}",
        )
        check_choice("norm", self.norm, NormKind)
        if self.norm == "layer":
            check(
                self.norm_divisor == self.n_channels,
                f"norm_divisor: expected n_channels {self.n_channels} with layer norm, "
                f"found {self.norm_divisor}",
            )
            check(
                not any(getattr(layer.attention, "qk_norm", None) for layer in self.layers),
                "qk_norm: expected none with layer norm",
            )
        check(
            self.norm_offset in (0, 1), f"norm_offset: expected 0 or 1, found {self.norm_offset!r}"
        )
        check_positive("embedding_scale", self.embedding_scale)
        check_flag("learned_positions", self.learned_positions)
        check(
            type(self.position_offset) is int and 0 <= self.position_offset <= MAX_DIMENSION,
            f"position_offset: expected an integer from 0, found {self.position_offset!r}",
        )
        if self.logit_soft_cap is not None:
            check_positive("logit_soft_cap", self.logit_soft_cap)
        for name in ("causal", "embedding_norm", "final_norm"):
            check_flag(name, getattr(self, name))
        check(
            type(self.token_types) is int and 0 <= self.token_types <= MAX_DIMENSION,
            f"token_types: expected an integer from 0, found {self.token_types!r}",
        )
        check(self.causal or self.tied_head, "tied_head: expected no head of an encoder")
        check(
            self.causal
            or not any(getattr(layer.attention, "window", None) for layer in self.layers),
            "window: expected none in an encoder",
        )

    @property
    def usual_length(self) -> int:
        """Positions up to which all sequences turn at the same frequencies, whatever their length.

        Rotations with LongRoPE turn those of longer sequences at others.
        """
        attentions = [layer.attention for layer in self.layers]
        ropes = [a.rope for a in attentions if isinstance(a, AttentionConfig) and a.rope]
        limits = [rope.usual_length for rope in ropes]
        return min([self.max_positions, *(limit for limit in limits if limit is not None)])

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor the model consists of, in file order."""
        return dict(self._tensors())

    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def non_embedding_parameters(self) -> int:
        """Number of weights outside the embeddings and the head."""
        return sum(
            math.prod(shape)
            for name, shape in self.tensor_shapes().items()
            if name not in _EMBEDDINGS
        )

    def fixed_parameters(self) -> int:
        """Those of them that belong to no layer: norms of the embedding and of the last stream."""
        return sum(
            math.prod(shape)
            for name, shape in self.tensor_shapes().items()
            if name not in _EMBEDDINGS and not name.startswith("layers.")
        )

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        d = self.n_channels
        yield "embedding.weight", (self.vocab_size, d)
        if self.learned_positions:
            yield "positions.weight", (self.max_positions + self.position_offset, d)
        if self.token_types:
            yield "token_types.weight", (self.token_types, d)
        if self.embedding_norm:
            yield from self._norm_tensors("embedding_norm", d)
        for index, layer in enumerate(self.layers):
            for name, sub_block in (("attention", layer.attention), ("ffn", layer.ffn)):
                if sub_block is None:
                    continue
                prefix = f"layers.{index}.{name}"
                if isinstance(sub_block, LinkConfig):
                    yield from self._link_tensors(prefix, sub_block)
                    continue
                if sub_block.norm_place in ("before", "both"):
                    yield from self._norm_tensors(f"{prefix}.norm", d)
                if isinstance(sub_block, AttentionConfig):
                    yield from self._attention_tensors(prefix, sub_block)
                else:
                    yield from ffn_tensors(prefix, sub_block, d)
                if sub_block.norm_place != "before":
                    yield from self._norm_tensors(f"{prefix}.post_norm", d)
        if self.final_norm:
            yield from self._norm_tensors("final_norm", d)
        if not self.tied_head:
            yield "head.weight", (self.vocab_size, d)

    def _norm_tensors(self, name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (width,)
        if self.norm == "layer":
            yield f"{name}.bias", (width,)

    def _link_tensors(self, prefix: str, link: LinkConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
        d = self.n_channels
        if link.reads:
            yield from self._norm_tensors(f"{prefix}.norm", d)
        if link.kind == "full":
            yield f"{prefix}.link.weight", (d, d)
        elif link.kind == "diagonal":
            yield f"{prefix}.link.weight", (d,)
        elif link.kind == "constant":
            yield f"{prefix}.link.bias", (d,)
        else:
            assert link.rank is not None
            yield f"{prefix}.link.down", (link.rank, d)
            yield f"{prefix}.link.up", (d, link.rank)

    def _attention_tensors(
        self, prefix: str, attention: AttentionConfig
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        outputs = {
            "q": attention.n_heads * attention.head_dim,
            "k": attention.n_kv_heads * attention.head_dim,
            "v": attention.n_kv_heads * attention.value_dim,
        }
        for part, rows in outputs.items():
            yield f"{prefix}.{part}.weight", (rows, self.n_channels)
            if attention.qkv_bias:
                yield f"{prefix}.{part}.bias", (rows,)
        if attention.qk_norm is not None:
            for part in ("q", "k"):
                width = attention.head_dim if attention.qk_norm == "head" else outputs[part]
                yield from self._norm_tensors(f"{prefix}.{part}_norm", width)
        yield f"{prefix}.o.weight", (self.n_channels, attention.n_heads * attention.value_dim)
        if attention.output_bias:
            yield f"{prefix}.o.bias", (self.n_channels,)

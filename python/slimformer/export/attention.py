"""Attention of any shape as an equivalent that every engine runs: grouped, one width, one scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint import Tensor
from slimformer.config import AttentionConfig, ModelConfig, RopeConfig
from slimformer.errors import UnsupportedModelError
from slimformer.export.blocks import Block, Change, Entries, gathered, reshaped, zero_block

FREQUENCY_TOLERANCE = 1e-6
"""Relative: the same frequency by two formulas in float32."""


SCALE_TOLERANCE = 1e-6
"""Relative: the same scale, rounded to float32 on the way through a file."""


@dataclasses.dataclass(frozen=True)
class Groups:
    """So many KV heads, each read by so many query heads."""

    kv_heads: int
    queries: int

    @property
    def cost(self) -> int:
        """In pairs of head-wide matrices: q and o of each query head, k and v of each KV head."""
        return self.kv_heads * (self.queries + 1)


def readers(attention: AttentionConfig) -> list[list[int]]:
    """The query heads of each KV head."""
    found: list[list[int]] = [[] for _ in range(attention.n_kv_heads)]
    for head, kv_head in enumerate(attention.q_to_kv):
        found[kv_head].append(head)
    return found


def even_groups(attentions: Sequence[AttentionConfig], *, divides: int = 0) -> Groups:
    """The cheapest even groups in which each of these attentions can be written.

    A KV head with more readers than a group holds is copied; what is then missing is filled with
    heads of zeros. ``divides`` asks for a number of query heads that divides it.

    Raises
    ------
    UnsupportedModelError
        No number of query heads that divides it is enough.
    """
    sizes = [[len(group) for group in readers(attention)] for attention in attentions]
    best: Groups | None = None
    for queries in range(1, max(map(max, sizes)) + 1):
        kv_heads = max(sum(-(-size // queries) for size in of_one) for of_one in sizes)
        while divides and kv_heads * queries <= divides and divides % (kv_heads * queries):
            kv_heads += 1
        if divides and kv_heads * queries > divides:
            continue
        groups = Groups(kv_heads, queries)
        # Of equals the one with fewer KV heads: their keys and values are kept for every token.
        if best is None or (groups.cost, groups.kv_heads) < (best.cost, best.kv_heads):
            best = groups
    if best is None:
        raise UnsupportedModelError(
            f"transformers asks for a number of heads that divides the width of {divides}, and "
            "none is large enough for the heads of this model"
        )
    return best


def trained_groups(attentions: Sequence[AttentionConfig]) -> Groups | None:
    """The groups that a model had before it was pruned, where a norm over all heads tells.

    In them every attention can be written: a norm of as many entries as it was trained with, the
    rest of them zeros, is what it was. In others it cannot, nor can a KV head be copied.
    """
    if not attentions or attentions[0].qk_norm != "width":
        return None
    first = attentions[0]
    assert first.q_norm_divisor is not None
    assert first.k_norm_divisor is not None
    width = trained_width(first)
    kv_heads = first.k_norm_divisor // width
    groups = Groups(kv_heads, first.q_norm_divisor // width // kv_heads)
    for attention in attentions:
        fits = max(map(len, readers(attention))) <= groups.queries
        if not fits or attention.n_kv_heads > groups.kv_heads:
            return None
    return groups


def trained_width(attention: AttentionConfig) -> int:
    """The width of query and key heads before rotary pairs went."""
    rope = attention.rope
    return attention.head_dim + (0 if rope is None else rope.trained_dim - rope.rotary_dim)


@dataclasses.dataclass(frozen=True)
class HeadWidth:
    """The width that all heads of a model are brought to, and how its pairs are rotated.

    With ``own_rotation`` heads that have the width, or had it before rotary pairs went, keep their
    own rotation; otherwise all have one.
    """

    width: int
    rope: RopeConfig | None
    own_rotation: bool = False

    @property
    def scale(self) -> float:
        """What engines multiply scores by unless they are told otherwise."""
        return float(self.width**-0.5)

    def key_entries(self, attention: AttentionConfig, where: str) -> Entries:
        """For each entry of a wide query or key head the entry that it is filled from, or -1.

        A narrower head fits if its pairs turn at frequencies that the wide one has: each goes to
        the pair of its frequency.
        """
        rope, wide = attention.rope, self.rotation_of(attention)
        if wide == rope and attention.head_dim == self.width:
            return np.arange(self.width)
        fixed = self.width - (0 if wide is None else wide.rotary_dim)
        if rope is None or wide is None or rope.rotary_dim != attention.head_dim - fixed:
            raise UnsupportedModelError(
                f"{where}: {0 if rope is None else rope.rotary_dim} of {attention.head_dim} "
                f"entries of a head are rotated, and {self.width - fixed} of the {self.width} that "
                "this format gives all heads"
            )
        ours, theirs = _frequencies(rope), _frequencies(wide)
        pairs = np.abs(theirs[0] / ours[0][:, None] - 1).argmin(axis=1)
        alike = (rope.amplitude, rope.usual_length) == (wide.amplitude, wide.usual_length)
        if not alike or not np.allclose(theirs[:, pairs], ours, rtol=FREQUENCY_TOLERANCE, atol=0):
            raise UnsupportedModelError(
                f"{where}: heads of {attention.head_dim} turn at frequencies that heads of "
                f"{self.width}, the widest of this model, do not have; this format has one width"
            )
        entries = np.full(self.width, -1, np.intp)
        half = rope.rotary_dim // 2
        entries[pairs] = np.arange(half)
        entries[pairs + wide.rotary_dim // 2] = np.arange(half) + half
        entries[wide.rotary_dim :] = np.arange(rope.rotary_dim, attention.head_dim)
        return entries

    def rotation_of(self, attention: AttentionConfig) -> RopeConfig | None:
        """How the wide heads of an attention are rotated."""
        if not self.own_rotation or trained_width(attention) != self.width:
            return self.rope
        return None if attention.rope is None else attention.rope.trained()

    def value_entries(self, attention: AttentionConfig, where: str) -> Entries:
        """The same for a value head, whose entries stay in their order."""
        if attention.value_dim > self.width:
            raise UnsupportedModelError(
                f"{where}: value heads of {attention.value_dim} are wider than the query heads of "
                f"{self.width}; this format has one width"
            )
        entries = np.full(self.width, -1, np.intp)
        entries[: attention.value_dim] = np.arange(attention.value_dim)
        return entries


def _frequencies(rope: RopeConfig) -> npt.NDArray[np.float32]:
    """Those of short sequences, and of long ones if they are others: [1 or 2, pairs]."""
    lengths = [1] if rope.usual_length is None else [1, rope.usual_length + 1]
    return np.stack([rope.inverse_frequencies(length) for length in lengths])


def widest(
    attentions: Iterable[AttentionConfig], *, own_rotation: bool = False
) -> HeadWidth | None:
    """The width of the widest heads as they were trained, ``None`` if there are none.

    Heads that have lost rotary pairs are as wide as before: other formats know the frequencies of
    all pairs or none.
    """
    shape = max(attentions, key=trained_width, default=None)
    if shape is None:
        return None
    rope = None if shape.rope is None else shape.rope.trained()
    return HeadWidth(trained_width(shape), rope, own_rotation)


def is_plain(attention: AttentionConfig, width: HeadWidth) -> bool:
    """Whether it is in even groups in order, and of that width, rotation and scale, already."""
    groups = Groups(attention.n_kv_heads, attention.n_heads // attention.n_kv_heads)
    return attention == dataclasses.replace(attention, **_sizes(groups, width, attention))


def evened(
    config: ModelConfig,
    block: Block,
    groups: Groups,
    width: HeadWidth,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
) -> tuple[Block, list[Change]]:
    """An equivalent attention in these groups, of this width and of the usual scale.

    Query heads are put in the order of their KV heads; narrower heads are filled with zeros; a
    scale goes into the query projection, or into the norm that comes after it. Biases that are
    asked for are zeros where there are none.
    """
    attention = block.shape
    assert isinstance(attention, AttentionConfig)
    if attention.qk_norm == "width" and trained_groups([attention]) != groups:
        raise UnsupportedModelError(
            f"{block.where}: heads that are normalised as one vector have no equivalent in other "
            "numbers than those that the model was trained with; export it ragged, to huggingface"
        )
    heads, kv_heads = _places(attention, groups)
    keys = width.key_entries(attention, block.where)
    values = width.value_entries(attention, block.where)
    factor = attention.scale / width.scale
    if abs(factor - 1) < SCALE_TOLERANCE:
        factor = 1.0
    made = {}
    q_entries = _entries(heads, keys, attention.head_dim)
    k_entries = _entries(kv_heads, keys, attention.head_dim)
    if attention.qk_norm == "width":
        made["q_norm.weight"] = gathered(block.tensors["q_norm.weight"], q_entries, 0)
        made["k_norm.weight"] = gathered(block.tensors["k_norm.weight"], k_entries, 0)
    if attention.qk_norm is not None and factor != 1.0:
        weight = made.get("q_norm.weight", block.tensors["q_norm.weight"])
        made["q_norm.weight"] = _scaled_norm(weight, factor, config.norm_offset)
        factor = 1.0
    cuts = {
        "q": (q_entries, factor),
        "k": (k_entries, 1.0),
        "v": (_entries(kv_heads, values, attention.value_dim), 1.0),
    }
    made |= {
        f"{part}.{kind}": gathered(block.tensors[f"{part}.{kind}"], entries, 0, scale)
        for part, (entries, scale) in cuts.items()
        for kind in ("weight", "bias")
        if f"{part}.{kind}" in block.tensors
    }
    columns = _entries(heads, values, attention.value_dim)
    made["o.weight"] = gathered(block.tensors["o.weight"], columns, 1)
    shape = dataclasses.replace(
        attention,
        **_sizes(groups, width, attention),
        qkv_bias=attention.qkv_bias or qkv_bias,
        output_bias=attention.output_bias or output_bias,
    )
    result = reshaped(config, block, shape, made)
    what = []
    if groups != Groups(attention.n_kv_heads, attention.n_heads // attention.n_kv_heads):
        what.append("heads filled up to even groups")
    if width.width != attention.head_dim or width.width != attention.value_dim:
        what.append("heads widened")
    if (shape.qkv_bias, shape.output_bias) != (attention.qkv_bias, attention.output_bias):
        what.append("biases of zeros added")
    added = result.parameters - block.parameters
    return result, [Change(block.where, ", ".join(what), added)] if what else []


def _scaled_norm(weight: Tensor, factor: float, offset: float) -> Tensor:
    """The weight of a norm that gives a multiple; ``offset`` is added to weights as they are."""

    def read() -> npt.NDArray[Any]:
        values: npt.NDArray[np.float32] = (weight.read().astype(np.float32) + offset) * factor
        return (values - offset).astype(np.float32)

    return Tensor(weight.shape, "f32", read)


def zero_attention(
    config: ModelConfig,
    groups: Groups,
    width: HeadWidth,
    like: Sequence[AttentionConfig] = (),
) -> Block:
    """An attention that adds nothing, in all but its sizes like the first of others."""
    shapes = [dataclasses.replace(other, **_sizes(groups, width, other)) for other in like[:1]]
    shape = shapes[0] if shapes else AttentionConfig(**_sizes(groups, width))
    return zero_block(config, shape)


def _sizes(
    groups: Groups, width: HeadWidth, attention: AttentionConfig | None = None
) -> dict[str, Any]:
    return {
        "n_heads": groups.kv_heads * groups.queries,
        "n_kv_heads": groups.kv_heads,
        "head_dim": width.width,
        "value_dim": width.width,
        "q_to_kv": tuple(kv for kv in range(groups.kv_heads) for _ in range(groups.queries)),
        "scale": width.scale,
        "rope": width.rope if attention is None else width.rotation_of(attention),
    }


def _places(attention: AttentionConfig, groups: Groups) -> tuple[list[int], list[int]]:
    """The source's query head in each place, and its KV head; -1 where a head of zeros goes."""
    heads: list[int] = []
    kv_heads: list[int] = []
    for kv_head, queries in enumerate(readers(attention)):
        for begin in range(0, len(queries), groups.queries):
            chosen = queries[begin : begin + groups.queries]
            heads += chosen + [-1] * (groups.queries - len(chosen))
            kv_heads.append(kv_head)
    missing = groups.kv_heads - len(kv_heads)
    return heads + [-1] * (missing * groups.queries), kv_heads + [-1] * missing


def _entries(heads: list[int], within: Entries, width: int) -> Entries:
    """Rows of the source for every row of these heads, -1 for zeros."""
    starts = np.asarray(heads, np.intp)[:, None] * width
    return np.where((starts < 0) | (within < 0), -1, starts + within).reshape(-1)

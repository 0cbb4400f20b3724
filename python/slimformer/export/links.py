"""Links for engines that have no word for them.

They become a matrix, or neurons whose gates stay open. A constant becomes an output bias: of the
sub-block before it, or of a neuron that does nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint import Tensor
from slimformer.config import AttentionConfig, FfnConfig, LinkConfig, ModelConfig
from slimformer.export.blocks import Block, Change, gathered, reshaped

OPEN_GATE = 32.0
"""A gate's bias. Its silu is 32 to the last bit of float32, and dividing by it loses nothing."""

_MATRICES_OF_A_NEURON = 3


def fold_constants(
    config: ModelConfig, blocks: Sequence[Block]
) -> tuple[list[Block], list[Change]]:
    """Constants as biases of the sub-blocks that they follow, where no norm is behind those.

    The blocks run one after the other; constants that have no such place are left.
    """
    changes: list[Change] = []
    folded: list[Block] = []
    for block in blocks:
        is_constant = isinstance(block.shape, LinkConfig) and block.shape.kind == "constant"
        into = _with_output_bias(config, folded[-1], block) if is_constant and folded else None
        if into is None:
            folded.append(block)
            continue
        added = into.parameters - folded[-1].parameters - block.parameters
        changes.append(Change(block.where, "constant link made a bias", added))
        folded[-1] = into
    return folded, changes


def _with_output_bias(config: ModelConfig, block: Block, constant: Block) -> Block | None:
    """A sub-block that adds a constant as well, ``None`` where its output has no bias."""
    shape: AttentionConfig | FfnConfig
    if isinstance(block.shape, AttentionConfig):
        part, shape = "o.bias", dataclasses.replace(block.shape, output_bias=True)
    elif isinstance(block.shape, FfnConfig):
        part, shape = "down.bias", dataclasses.replace(block.shape, bias=True)
    else:
        return None
    if shape.norm_place != "before":
        return None
    terms = [constant.tensors["link.bias"], *filter(None, [block.tensors.get(part)])]

    def total() -> npt.NDArray[Any]:
        first, second = (term.read().astype(np.float32) for term in terms)
        return first + second

    bias = terms[0] if len(terms) == 1 else Tensor(terms[0].shape, "f32", total)
    return reshaped(config, block, shape, {part: bias})


def smallest_equivalent(config: ModelConfig, block: Block) -> tuple[Block, list[Change]]:
    """A full link, or neurons where they are fewer weights than that."""
    link = block.shape
    assert isinstance(link, LinkConfig)
    if not link.reads:
        return open_neurons(config, block)
    if link.rank is not None and link.rank * _MATRICES_OF_A_NEURON < config.n_channels:
        return open_neurons(config, block)
    return full_link(config, block)


def full_link(config: ModelConfig, block: Block) -> tuple[Block, list[Change]]:
    """The link as one matrix, [n_channels, n_channels]."""
    link = block.shape
    assert isinstance(link, LinkConfig)
    if link.kind == "full":
        return block, []
    given = block.tensors
    if link.kind == "diagonal":
        matrix = _diagonal(given["link.weight"])
    else:

        def product() -> npt.NDArray[Any]:
            up, down = (given[f"link.{part}"].read().astype(np.float32) for part in ("up", "down"))
            return up @ down

        matrix = Tensor((config.n_channels,) * 2, "f32", product)
    full = reshaped(config, block, LinkConfig("full"), {"link.weight": matrix})
    return full, [_change(block, full, "made a full matrix")]


def open_neurons(config: ModelConfig, block: Block) -> tuple[Block, list[Change]]:
    """The link as an FFN of as many neurons as it has ranks, whose gates do not close.

    Gates without weights and with a bias are constant, and down(constant * up(x)) is linear. For a
    constant one neuron has weights of zero alone.
    """
    link = block.shape
    assert isinstance(link, LinkConfig)
    given = block.tensors
    if link.kind == "constant":
        ffn = reshaped(config, block, FfnConfig(1, bias=True), {"down.bias": given["link.bias"]})
        return ffn, [_change(block, ffn, "made the output bias of a neuron of zeros")]
    identity = _diagonal(Tensor.of(np.ones(config.n_channels, np.float32)))
    if link.kind == "low_rank":
        first, second = given["link.down"], given["link.up"]
    elif link.kind == "full":
        first, second = given["link.weight"], identity
    else:
        first, second = _diagonal(given["link.weight"]), identity
    neurons = first.shape[0]
    made = {
        "gate.bias": Tensor.of(np.full(neurons, OPEN_GATE, np.float32)),
        "up.weight": first,
        "down.weight": gathered(second, np.arange(neurons), 1, 1 / OPEN_GATE),
    }
    ffn = reshaped(config, block, FfnConfig(neurons, bias=True), made)
    return ffn, [_change(block, ffn, "made neurons with open gates")]


def _diagonal(tensor: Tensor) -> Tensor:
    (size,) = tensor.shape
    return Tensor((size, size), tensor.dtype, lambda: np.diag(tensor.read()))


def _change(block: Block, rewritten: Block, what: str) -> Change:
    assert isinstance(block.shape, LinkConfig)
    kind = block.shape.kind.replace("_", "-")
    return Change(block.where, f"{kind} link {what}", rewritten.parameters - block.parameters)

"""The same model with its value heads in another basis.

What a query head adds to the stream is ``O p V x``, a mean of values by its scores p: no other part
of the model looks at a value. So the values of a KV head may be multiplied by any matrix that its
readers' columns of the output-projection undo. In the basis that is best for it, V·O loses least
when it is cut to a lower rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig
from slimformer.errors import ConfigError

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

RIDGE = 1e-4
"""Of the mean variance of a head's entries, added to each: text that varies little in a direction
says little about it, and no basis is to be stretched without end."""

LEAST = 1e-3
"""Directions that matter less than this share of the first one are not stretched any further."""


def turn_values(checkpoint: Checkpoint, bases: Mapping[int, Array]) -> Checkpoint:
    """The same model whose values v are ``basis @ v``.

    Parameters
    ----------
    checkpoint
        Any model.
    bases
        For some layers, an invertible matrix for each KV head,
        [n_kv_heads, value_dim, value_dim].

    Returns
    -------
    A model with a name of its own and no recipe: it does not come from another by removing.

    Raises
    ------
    ConfigError
        A layer without attention, or matrices of another shape or without an inverse.
    """
    tensors = dict(checkpoint.tensors)
    for index, basis in bases.items():
        attention = _attention(checkpoint, index)
        inverse = _inverse(basis, attention, index)
        prefix = f"layers.{index}.attention."
        for name in (f"{prefix}v.weight", f"{prefix}v.bias"):
            if name in tensors:
                tensors[name] = tensors[name].mapped(_turner(basis))
        name = f"{prefix}o.weight"
        tensors[name] = tensors[name].mapped(_undoer(inverse[list(attention.q_to_kv)]))
    return dataclasses.replace(
        checkpoint, name=f"{checkpoint.name}-aligned", tensors=tensors, recipe=None
    )


def best_bases(attention: AttentionConfig, weight: Floats, gram: Array) -> Array:
    """The bases in which entries matter in falling order, [n_kv_heads, value_dim, value_dim].

    To keep the first r entries is the best that rank r can do for a KV head's readers together, if
    they see values of the same covariance: a singular value decomposition of their output
    projections, weighted by it (as that of one matrix is in SVD-LLM, Wang et al. 2024,
    arXiv 2403.07378).

    Parameters
    ----------
    attention
        The shape.
    weight
        Output projection in terms of the stream, [channels, n_heads * value_dim].
    gram
        Second moment of its inputs, [n_heads * value_dim, n_heads * value_dim].
    """
    width = attention.value_dim
    by_head = weight.astype(np.float64).reshape(len(weight), attention.n_heads, width)
    blocks = gram.reshape(attention.n_heads, width, attention.n_heads, width)
    bases = []
    for kv_head in range(attention.n_kv_heads):
        readers = [head for head, read in enumerate(attention.q_to_kv) if read == kv_head]
        seen = np.mean([blocks[head, :, head] for head in readers], axis=0)
        outputs = by_head[:, readers]
        bases.append(_best_basis(seen, np.einsum("chv,chw->vw", outputs, outputs)))
    return np.stack(bases)


def _best_basis(seen: Array, weights: Array) -> Array:
    """One of them: from the second moment of the values and that of the weights that read them."""
    seen = seen + np.eye(len(seen)) * max(RIDGE * float(np.trace(seen)) / len(seen), 1e-30)
    variances, directions = np.linalg.eigh(seen)
    root = (directions * np.sqrt(variances)) @ directions.T
    squares, vectors = np.linalg.eigh(root @ weights @ root)
    strengths = np.sqrt(np.maximum(squares[::-1], 0.0))
    # Halfway between values of one size and weights of one size: both are rounded.
    stretch = np.sqrt(np.maximum(strengths, LEAST * max(float(strengths.max()), 1e-30)))
    basis: Array = stretch[:, None] * np.linalg.solve(root, vectors[:, ::-1]).T
    return basis


def _attention(checkpoint: Checkpoint, index: int) -> AttentionConfig:
    layers = checkpoint.config.layers
    found = layers[index].attention if 0 <= index < len(layers) else None
    if not isinstance(found, AttentionConfig):
        raise ConfigError(f"bases: layer {index} of {checkpoint.name} has no values")
    return found


def _inverse(basis: Array, attention: AttentionConfig, index: int) -> Array:
    shape = (attention.n_kv_heads, attention.value_dim, attention.value_dim)
    if basis.shape != shape:
        raise ConfigError(
            f"bases: layer {index}: expected {list(shape)}, found {list(basis.shape)}"
        )
    try:
        return np.asarray(np.linalg.inv(basis), np.float64)
    except np.linalg.LinAlgError as error:
        raise ConfigError(f"bases: layer {index}: a matrix has no inverse") from error


def _turner(basis: Array) -> Callable[[Floats], Array]:
    """Rows by KV head, each head's multiplied by its matrix."""
    heads, width, _ = basis.shape

    def turn(values: Floats) -> Array:
        rows = basis @ values.reshape(heads, width, -1)
        return rows.reshape(values.shape)

    return turn


def _undoer(inverse: Array) -> Callable[[Floats], Array]:
    """Columns by query head, each head's multiplied by its matrix from the right."""
    heads, width, _ = inverse.shape

    def undo(weight: Floats) -> Array:
        columns = weight.reshape(len(weight), heads, width)
        return np.asarray(np.einsum("chv,hvw->chw", columns, inverse)).reshape(weight.shape)

    return undo

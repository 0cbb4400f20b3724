"""The residual stream in another basis: the same model, its channels mixed.

RMSNorm divides by a length, which no rotation changes, so its gains can move into the matrices that
read the stream and the stream can be turned: what writes to it writes the turned vector, what reads
it turns it back (Ashkboos et al. 2024, SliceGPT, arXiv 2401.15024). There each layer has a basis of
its own and carries matrices from one to the next; one basis for all layers needs none, so that
the architecture stays what it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint, Tensor
from slimformer.config import LayerConfig, LinkConfig, ModelConfig, RoutedFfnConfig
from slimformer.errors import ConfigError, UnsupportedModelError
from slimformer.prune.structures import READERS, WRITERS

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

ORTHOGONAL = 1e-6
"""How far from one and from zero the products of a basis' columns may be."""


def rotate(checkpoint: Checkpoint, basis: Array) -> Checkpoint:
    """The same model whose stream x is ``basis.T @ x``.

    Norms have no gains any more. A tied head, which would read the stream as the embedding writes
    it, is one no longer if a norm with gains stands before it.

    Parameters
    ----------
    checkpoint
        A model that normalises by length (RMSNorm) what its sub-blocks read, and nothing else.
    basis
        Orthogonal, [channels, channels]; column j is the direction that becomes channel j.

    Returns
    -------
    A model with a name of its own and no recipe: it does not come from another by removing.

    Raises
    ------
    ConfigError
        The basis is not orthogonal, or of another size.
    UnsupportedModelError
        The model has something in it that no rotation can pass, named in the message.
    """
    check_rotatable(checkpoint)
    _check_basis(basis, checkpoint.config.n_channels)
    turn = _Turn(checkpoint, basis.astype(np.float32))
    tensors = turn.outside()
    for index, layer in enumerate(checkpoint.config.layers):
        tensors |= turn.layer(index, layer)
    config = dataclasses.replace(
        checkpoint.config,
        tied_head="head.weight" not in tensors,
        layers=tuple(map(_rotated_layer, checkpoint.config.layers)),
    )
    return dataclasses.replace(
        checkpoint,
        name=f"{checkpoint.name}-rotated",
        config=config,
        tensors={name: tensors[name] for name in config.tensor_shapes()},
        recipe=None,
    )


class _Turn:
    """Makes the tensors of the rotated model; they are read and turned when asked for."""

    def __init__(self, checkpoint: Checkpoint, basis: Floats) -> None:
        self._checkpoint = checkpoint
        self._basis = basis
        self._no_gain = 1 - checkpoint.config.norm_offset

    def outside(self) -> dict[str, Tensor]:
        """Embeddings, last norm and head."""
        config, tensors = self._checkpoint.config, self._checkpoint.tensors
        names = ("embedding.weight", "positions.weight", "token_types.weight")
        turned = {name: self._reader(name) for name in names if name in tensors}
        gains = "final_norm" if config.final_norm else None
        if gains is not None:
            turned["final_norm.weight"] = self._flat("final_norm.weight")
        if not config.tied_head:
            turned["head.weight"] = self._reader("head.weight", gains)
        elif gains is not None:
            turned["head.weight"] = self._reader("embedding.weight", gains)
        return turned

    def layer(self, index: int, layer: LayerConfig) -> dict[str, Tensor]:
        """Everything below ``layers.{index}``."""
        turned = {}
        prefix = f"layers.{index}."
        for name, tensor in self._checkpoint.tensors.items():
            if not name.startswith(prefix):
                continue
            sub_block, part = name.removeprefix(prefix).split(".", 1)
            norm = f"{prefix}{sub_block}.norm"
            if part == "norm.weight":
                turned[name] = self._flat(name)
            elif part in READERS:
                turned[name] = self._reader(name, norm)
            elif part in WRITERS:
                turned[name] = self._writer(name)
            elif part == "link.weight":
                turned[name] = self._link(name, norm)
            else:
                turned[name] = tensor
        return turned

    def _reader(self, name: str, norm: str | None = None) -> Tensor:
        """A matrix that has a column for each channel, with the gains of the norm before it."""
        return self._made(name, lambda matrix: self._read_turned(matrix, norm))

    def _writer(self, name: str) -> Tensor:
        """A matrix that has a row for each channel, or a bias."""
        return self._made(name, lambda values: self._basis.T @ values)

    def _link(self, name: str, norm: str) -> Tensor:
        """A square matrix of channels, or its diagonal, which is one no longer."""
        size = len(self._basis)

        def turned(values: Floats) -> Floats:
            matrix = np.diag(values) if values.ndim == 1 else values
            return self._basis.T @ self._read_turned(matrix, norm)

        return self._made(name, turned, (size, size))

    def _read_turned(self, matrix: Floats, norm: str | None) -> Floats:
        if norm is not None:
            gains = self._checkpoint.read_f32(f"{norm}.weight")
            matrix = matrix * (gains + np.float32(self._checkpoint.config.norm_offset))
        return matrix @ self._basis

    def _flat(self, name: str) -> Tensor:
        return self._made(name, lambda gains: np.full_like(gains, self._no_gain))

    def _made(
        self, name: str, make: Callable[[Floats], Floats], shape: tuple[int, ...] | None = None
    ) -> Tensor:
        return self._checkpoint.tensors[name].mapped(make, shape=shape)


def _rotated_layer(layer: LayerConfig) -> LayerConfig:
    """The shape of a rotated layer: diagonal links are full ones."""
    full = LinkConfig("full")
    attention, ffn = layer.attention, layer.ffn
    if isinstance(attention, LinkConfig) and attention.kind == "diagonal":
        attention = full
    if isinstance(ffn, LinkConfig) and ffn.kind == "diagonal":
        ffn = full
    return dataclasses.replace(layer, attention=attention, ffn=ffn)


def check_rotatable(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedModelError unless ``rotate`` can turn the stream of such a model."""
    config = checkpoint.config
    obstacle = _obstacle(config)
    if obstacle is not None:
        raise UnsupportedModelError(
            f"{checkpoint.name}: its stream cannot be rotated: {obstacle}; channels of such a "
            "model can only be selected"
        )


def _obstacle(config: ModelConfig) -> str | None:
    if config.norm == "layer":
        return "layer norm takes the mean of its channels"
    if not config.causal:
        return "an encoder's vectors are its stream"
    if config.embedding_norm:
        return "the norm of its embedding multiplies channels"
    for layer in config.layers:
        if isinstance(layer.ffn, RoutedFfnConfig):
            return "routers would have to turn with it and stay as exact as they are"
        for part in (layer.attention, layer.ffn):
            if part is not None and part.norm_place != "before":
                return "norms behind its sub-blocks multiply channels"
    return None


def _check_basis(basis: Array, channels: int) -> None:
    if basis.shape != (channels, channels):
        raise ConfigError(f"basis: expected [{channels}, {channels}], found {list(basis.shape)}")
    error = float(np.abs(basis.T @ basis - np.eye(channels)).max())
    if not error <= ORTHOGONAL:
        raise ConfigError(f"basis: expected orthogonal columns, found products off by {error:.2g}")

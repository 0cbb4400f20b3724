"""A checkpoint's tensors into the core, packed on the way or mapped as they are."""

from __future__ import annotations

from slimformer import _core
from slimformer.arrays import as_core_array
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.checkpoint.packed import PackedTensors


def load_checkpoint(model: _core.PackedModel, checkpoint: Checkpoint) -> None:
    """Gives ``model`` every tensor, one at a time, and finishes it.

    Raises
    ------
    FormatError
        The tensors hold NaN or infinite values.
    UnsupportedModelError
        They were packed for other kernels.
    """
    if isinstance(checkpoint.tensors, PackedTensors):
        _map_packed(model, checkpoint.tensors)
    else:
        for name, tensor in checkpoint.tensors.items():
            model.load_tensor(name, as_core_array(tensor.read()))
    model.finish()


def _map_packed(model: _core.PackedModel, tensors: PackedTensors) -> None:
    tensors.check_layouts(_core.layouts(model.tier), model.tier, _core.build_info()["tiers"])
    for name, part in tensors.packed.items():
        if part.weights is None:
            model.load_tensor(name, part.values(), kept=True)
        else:
            model.map_tensor(name, part.data, weights=part.weights, sparse=part.sparse)

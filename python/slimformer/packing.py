"""``pack``: a model as the kernels of this machine read it, to be mapped by the next engine."""

from __future__ import annotations

import os

from slimformer.checkpoint import Checkpoint, load
from slimformer.checkpoint.saving import check_output, save_packed
from slimformer.engine import Engine, Sparse, Weights


def pack(
    model: Checkpoint | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    weights: Weights = "bf16",
    sparse: Sparse = "auto",
    threads: int = 0,
    tier: str | None = None,
) -> None:
    """Pack a model and write it, so that loading it takes no packing and no copy.

    The folder runs wherever the engine's kernels keep weights in the same layout, and gives the
    same results bit for bit; other engines refuse it. It cannot be pruned or saved in another
    format: keep the model.

    Parameters
    ----------
    model:
        A checkpoint, or what `slimformer.load` takes.
    path:
        The folder to write. Another packed model is replaced; anything else is refused.
    weights, sparse, threads, tier:
        See `slimformer.Engine`.

    Raises
    ------
    StorageError
        The folder cannot be written, or holds something else; nothing was changed.
    SlimformerError
        What loading and packing the model raise.
    """
    check_output(path, packed=True)
    checkpoint = model if isinstance(model, Checkpoint) else load(model)
    engine = Engine(checkpoint, weights=weights, sparse=sparse, threads=threads, tier=tier)
    save_packed(
        checkpoint, path, weights=weights, tier=engine.tier, tensors=engine.packed_tensors()
    )

"""A checkpoint as a folder that ``transformers`` opens."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from importlib import resources
from typing import Any

from slimformer.checkpoint import Checkpoint, save
from slimformer.checkpoint.checkpoint import DtypeChoice
from slimformer.checkpoint.families import by_name
from slimformer.checkpoint.native import KEY, MODEL_TYPE, describe
from slimformer.checkpoint.saving import MODEL_CODE, ModelCode
from slimformer.errors import UnsupportedModelError

_CLASSES = {"AutoConfig": "SlimformerConfig", "AutoModelForCausalLM": "SlimformerForCausalLM"}

_NAMES_OF = "qwen3"
"""The family whose tensor names the modelling file has: Llama's, and norms of queries and keys."""

_MODELLED: dict[str, frozenset[str]] = {
    "model": frozenset(
        ("schema", "family", "norm_divisor", "norm_offset", "embedding_scale", "layers")
    ),
    "layer": frozenset(("attention", "ffn")),
    "attention": frozenset(
        (
            *("n_heads", "n_kv_heads", "head_dim", "value_dim", "q_to_kv", "scale", "rope"),
            *("qkv_bias", "output_bias", "window", "qk_norm", "link", "rank"),
        )
    ),
    "ffn": frozenset(("n_neurons", "bias", "activation", "link", "rank")),
}
"""What the modelling file knows; it would pass over anything else."""


def write_huggingface(
    checkpoint: Checkpoint, path: str | os.PathLike[str], *, dtype: DtypeChoice = "auto"
) -> None:
    """Write a model as a folder that ``transformers`` opens.

    A uniform model is a plain checkpoint of its family. A ragged one carries a modelling file and
    is opened with ``trust_remote_code=True``.

    Raises
    ------
    UnsupportedModelError
        The modelling file does not know a feature of the model.
    StorageError
        The folder cannot be written, or holds something else.
    """
    _check_modelled(checkpoint)
    dense = dataclasses.replace(checkpoint, sparse=False)
    save(dense, path, dtype=dtype, code=ModelCode(_modelling_file(), _CLASSES))


def _modelling_file() -> str:
    return (resources.files("slimformer.export") / MODEL_CODE).read_text(encoding="utf-8")


def _check_modelled(checkpoint: Checkpoint) -> None:
    description = describe(checkpoint.config)
    if description["model_type"] != MODEL_TYPE:
        return
    family = by_name(checkpoint.config.family, checkpoint.name)
    named_alike = by_name(_NAMES_OF, checkpoint.name)
    for name in checkpoint.config.tensor_shapes():
        if family.huggingface_name(name) != named_alike.huggingface_name(name):
            _refuse(checkpoint.name, f"the tensor {name}")
    own = description[KEY]
    _check_known("model", checkpoint.name, own)
    for index, layer in enumerate(own["layers"]):
        where = f"{checkpoint.name}: layer {index}"
        _check_known("layer", where, layer)
        for kind in ("attention", "ffn"):
            _check_known(kind, f"{where} {kind}", layer[kind] or {})


def _check_known(kind: str, where: str, settings: Mapping[str, Any]) -> None:
    unknown = sorted(settings.keys() - _MODELLED[kind])
    if settings.get("qk_norm") not in (None, "head"):
        unknown.append("qk_norm")
    if unknown:
        _refuse(where, unknown[0])


def _refuse(where: str, what: str) -> None:
    raise UnsupportedModelError(
        f"{where}: {what} of a ragged model is known to no class in transformers, and not to the "
        "one that is exported with it; fill the layers up with --pad"
    )

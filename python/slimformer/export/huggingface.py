"""A checkpoint as a folder that ``transformers`` opens."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from importlib import resources
from typing import Any

from slimformer.checkpoint import Checkpoint, native, save
from slimformer.checkpoint.checkpoint import DtypeChoice
from slimformer.checkpoint.native import KEY, MODEL_TYPE, describe
from slimformer.checkpoint.saving import MODEL_CODE, ModelCode
from slimformer.errors import UnsupportedModelError

_CLASSES = {"AutoConfig": "SlimformerConfig", "AutoModel": "SlimformerModel"}
_CAUSAL_CLASSES = {**_CLASSES, "AutoModelForCausalLM": "SlimformerForCausalLM"}

_MODELLED: dict[str, frozenset[str]] = {
    "model": frozenset(
        (
            *("schema", "family", "layers", "norm", "norm_divisor", "norm_offset"),
            *("embedding_scale", "embedding_norm", "final_norm", "logit_soft_cap"),
            *("learned_positions", "position_offset", "token_types", "causal"),
        )
    ),
    "layer": frozenset(("attention", "ffn", "parallel")),
    "attention": frozenset(
        (
            *("n_heads", "n_kv_heads", "head_dim", "value_dim", "q_to_kv", "scale", "rope"),
            *("qkv_bias", "output_bias", "window", "soft_cap", "norm_place", "link", "rank"),
            *("qk_norm", "q_norm_divisor", "k_norm_divisor"),
        )
    ),
    "ffn": frozenset(
        (
            *("n_neurons", "bias", "activation", "gated", "norm_place", "link", "rank"),
            *("experts", "top_k", "softmax_over"),
        )
    ),
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
    classes = _CAUSAL_CLASSES if checkpoint.config.causal else _CLASSES
    dense = dataclasses.replace(checkpoint, sparse=False)
    save(dense, path, dtype=dtype, code=ModelCode(_modelling_file(), classes))


def _modelling_file() -> str:
    return (resources.files("slimformer.export") / MODEL_CODE).read_text(encoding="utf-8")


def _check_modelled(checkpoint: Checkpoint) -> None:
    description = describe(checkpoint.config)
    if description["model_type"] != MODEL_TYPE:
        return
    for name in checkpoint.config.tensor_shapes():
        if native.tensor_name(name) == name:
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
    if unknown:
        _refuse(where, unknown[0])


def _refuse(where: str, what: str) -> None:
    raise UnsupportedModelError(
        f"{where}: {what} of a ragged model is known to no class in transformers, and not to the "
        "one that is exported with it; fill the layers up with --pad"
    )

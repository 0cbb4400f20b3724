"""What a reader or writer of checkpoints needs to know about a model family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.fields import Fields
from slimformer.checkpoint.gguf_header import GgufFile
from slimformer.config import ModelConfig

RowOrder = npt.NDArray[np.intp]


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """The names of one tensor, or of one tensor of every layer, without its last part.

    Names of layers hold ``{i}``. The last part (``weight``, ``bias``) is the same in every
    format. ``gguf`` is ``None`` for what that format cannot say.
    """

    canonical: str
    huggingface: str
    gguf: str | None


@dataclasses.dataclass(frozen=True)
class Family:
    """One model family, declared.

    Attributes
    ----------
    name:
        What ``ModelConfig.family`` says.
    huggingface_type, huggingface_class:
        ``model_type`` and the entry of ``architectures`` in ``config.json``.
    gguf_architecture:
        ``general.architecture`` in GGUF metadata, which also prefixes the family's keys.
    names:
        The table of tensor names.
    from_huggingface:
        Shape from the settings of ``config.json``.
    to_huggingface:
        The settings of ``config.json``, or ``None`` for a shape that the family's class in
        ``transformers`` cannot express.
    from_gguf:
        Shape from GGUF metadata and tensor descriptions.
    gguf_row_order:
        For a canonical tensor name, the order of stored rows that gives Slimformer's rows,
        or ``None`` where they agree.
    gguf_consumed:
        GGUF tensors that are part of the shape and not weights.
    """

    name: str
    huggingface_type: str
    huggingface_class: str
    gguf_architecture: str
    names: tuple[TensorNames, ...]
    from_huggingface: Callable[[Fields], ModelConfig]
    to_huggingface: Callable[[ModelConfig], Mapping[str, Any] | None]
    from_gguf: Callable[[GgufFile], ModelConfig]
    gguf_row_order: Callable[[ModelConfig, str], RowOrder | None]
    gguf_consumed: frozenset[str] = frozenset()

    def huggingface_name(self, canonical: str) -> str:
        """The tensor's name in a Hugging Face checkpoint."""
        return self._translate(canonical, "huggingface")

    def gguf_name(self, canonical: str) -> str:
        """The tensor's name in a GGUF file."""
        return self._translate(canonical, "gguf")

    def _translate(self, canonical: str, target: str) -> str:
        stem, _, last = canonical.rpartition(".")
        index = ""
        if stem.startswith("layers."):
            _, index, rest = stem.split(".", 2)
            stem = f"layers.{{i}}.{rest}"
        for entry in self.names:
            name: str | None = getattr(entry, target)
            if entry.canonical == stem and name is not None:
                return f"{name.replace('{i}', index)}.{last}"
        raise KeyError(f"family {self.name} has no {target} tensor {canonical}")

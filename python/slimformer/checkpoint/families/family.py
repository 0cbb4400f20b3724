"""What a reader or writer of checkpoints needs to know about a model family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.families.description import Description
from slimformer.checkpoint.families.metadata import read_metadata
from slimformer.checkpoint.families.settings import read_settings, write_settings
from slimformer.checkpoint.fields import Fields
from slimformer.checkpoint.gguf_header import GgufFile
from slimformer.config import AttentionConfig, ModelConfig

RowOrder = npt.NDArray[np.intp]


GgufLack = Literal["width", "groups", "window", "attention_bias", "ffn_bias"]
"""``width``: heads that together are not as wide as the residual stream; ``groups``: KV heads that
several query heads read."""


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """The names of one tensor, or of one tensor of every layer, without its last part.

    Names of layers hold ``{i}``, those of experts ``{e}``, too. The last part (``weight``,
    ``bias``) is the same in every format. ``None`` for a format that has no tensor of that kind
    by itself.
    """

    canonical: str
    huggingface: str | None
    gguf: str | None


def named(
    *rows: tuple[str, str | None, str | None], base: tuple[TensorNames, ...] = ()
) -> tuple[TensorNames, ...]:
    """A table of names: that of another family with some rows replaced or added."""
    table = {entry.canonical: entry for entry in base}
    return tuple({**table, **{row[0]: TensorNames(*row) for row in rows}}.values())


@dataclasses.dataclass(frozen=True)
class Packed:
    """A tensor of a format that is not one of ours as it is.

    ``parts`` are the canonical ones that it holds, without their last part, one after another
    along the outputs, or head by head where ``by_head`` is set. ``transposed`` weights are
    [inputs, outputs]. ``stacked`` ones are those of all experts, [experts, outputs, inputs].
    """

    name: str
    parts: tuple[str, ...]
    by_head: bool = False
    transposed: bool = False
    stacked: bool = False


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
        ``general.architecture`` in GGUF metadata, which also prefixes the family's keys;
        ``None`` where the format has none, or where it is that of another family.
    names:
        The table of tensor names. A tensor that is not in it goes by its canonical name in
        folders.
    description:
        Settings and blocks.
    packed, gguf_packed:
        Tensors that the family's class in ``transformers``, or a GGUF file, keeps in another
        form. Folders of Slimformer's own kind never do.
    prefix:
        What some folders leave out at the beginning of all names.
    buffers:
        Ends of names of stored tensors that follow from the settings.
    gguf_interleaved:
        Whether GGUF keeps the two members of a rotary pair next to each other, rows
        (2j, 2j + 1) of a head of q or k; here they are (j, j + rotary_dim / 2).
    gguf_lacks:
        What llama.cpp does not run in files of this architecture, though other formats say it.
    gguf_ragged:
        Whether GGUF metadata give each layer its own heads, KV heads and neurons, or none.
    """

    name: str
    huggingface_type: str
    huggingface_class: str
    gguf_architecture: str | None
    names: tuple[TensorNames, ...]
    description: Description
    packed: tuple[Packed, ...] = ()
    gguf_packed: tuple[Packed, ...] = ()
    prefix: str = ""
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)
    gguf_interleaved: bool = False
    gguf_lacks: frozenset[GgufLack] = frozenset()
    gguf_ragged: bool = False

    def from_huggingface(self, settings: Fields) -> ModelConfig:
        """Shape from the settings of ``config.json``."""
        return read_settings(self.name, self.description, settings)

    def to_huggingface(self, config: ModelConfig) -> Mapping[str, Any] | None:
        """The settings of ``config.json``.

        ``None`` for a shape that the family's class in ``transformers`` cannot express.
        """
        return write_settings(self.name, self.description, config)

    def from_gguf(self, file: GgufFile) -> ModelConfig:
        """Shape from GGUF metadata and tensor descriptions."""
        assert self.gguf_architecture is not None
        return read_metadata(
            self.name, self.gguf_architecture, self.description, file, ragged=self.gguf_ragged
        )

    def gguf_row_order(self, config: ModelConfig, name: str) -> RowOrder | None:
        """For a canonical tensor, the order of stored rows that gives Slimformer's rows.

        ``None`` where they agree.
        """
        parts = name.split(".")
        rotated = parts[0] == "layers" and parts[2] == "attention" and parts[3] in ("q", "k")
        if not self.gguf_interleaved or not rotated:
            return None
        attention = config.layers[int(parts[1])].attention
        assert isinstance(attention, AttentionConfig)
        if attention.rope is None:
            return None
        heads = attention.n_heads if parts[3] == "q" else attention.n_kv_heads
        rotary_dim = attention.rope.rotary_dim
        within = np.arange(attention.head_dim)
        within[:rotary_dim] = np.arange(rotary_dim).reshape(-1, 2).T.ravel()
        return (np.arange(heads)[:, None] * attention.head_dim + within).ravel()

    def huggingface_name(self, canonical: str) -> str:
        """The tensor's name in a folder that keeps it by itself."""
        return translated(self.names, canonical, "huggingface") or canonical

    def gguf_name(self, canonical: str) -> str:
        """The tensor's name in a GGUF file that keeps it by itself."""
        name = translated(self.names, canonical, "gguf")
        if name is None:
            raise KeyError(f"family {self.name} has no GGUF tensor {canonical}")
        return name


def translated(
    names: tuple[TensorNames, ...], canonical: str, target: Literal["huggingface", "gguf"]
) -> str | None:
    """A tensor's name in a format, by a table; ``None`` where that has none."""
    found = Name.of(canonical)
    for entry in names:
        name: str | None = getattr(entry, target)
        if entry.canonical == found.stem and name is not None:
            return found.put_into(name)
    return None


@dataclasses.dataclass(frozen=True)
class Name:
    """A canonical name: ``layers.{i}.ffn.experts.{e}.up``, layer, expert, and ``weight``."""

    stem: str
    layer: str
    expert: str
    last: str

    @staticmethod
    def of(canonical: str) -> Name:
        """``layers.3.ffn.up.weight``, say, in its parts."""
        stem, _, last = canonical.rpartition(".")
        if not stem.startswith("layers."):
            return Name(stem, "", "", last)
        _, layer, rest = stem.split(".", 2)
        before, experts, after = rest.partition(".experts.")
        expert, _, part = after.partition(".")
        rest = f"{before}.experts.{{e}}.{part}" if experts else rest
        return Name(f"layers.{{i}}.{rest}", layer, expert, last)

    def put_into(self, name: str) -> str:
        """The name of another table for the same tensor."""
        return f"{name.replace('{i}', self.layer).replace('{e}', self.expert)}.{self.last}"

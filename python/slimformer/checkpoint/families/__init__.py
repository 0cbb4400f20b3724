"""The model families: how each is named and described in every file format.

A family is data: its names in the formats, the table of its tensor names, and a description of
its settings and blocks. Readers and writers work from that data alone, in both directions. To
add one, write it down beside its kin and list it in ``FAMILIES``.
"""

from __future__ import annotations

from slimformer.checkpoint.families.bert import BERT, DISTILBERT, ROBERTA
from slimformer.checkpoint.families.deci import DECI
from slimformer.checkpoint.families.experts import MIXTRAL, OLMOE, QWEN3_MOE
from slimformer.checkpoint.families.family import Family
from slimformer.checkpoint.families.gemma import GEMMA, GEMMA2, GEMMA3
from slimformer.checkpoint.families.gpt import GPT2, GPT_NEOX, OPT
from slimformer.checkpoint.families.llama import LLAMA, MISTRAL, SMOLLM3
from slimformer.checkpoint.families.olmo2 import OLMO2
from slimformer.checkpoint.families.phi3 import PHI3
from slimformer.checkpoint.families.qwen import QWEN2, QWEN3
from slimformer.errors import UnsupportedModelError

FAMILIES: tuple[Family, ...] = (
    *(LLAMA, MISTRAL, SMOLLM3, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, PHI3, OLMO2),
    *(GPT2, GPT_NEOX, OPT, BERT, ROBERTA, DISTILBERT, MIXTRAL, QWEN3_MOE, OLMOE),
)

RAGGED_GGUF: tuple[Family, ...] = (DECI,)
"""How GGUF says the ragged shapes of a family."""

__all__ = [
    "FAMILIES",
    "Family",
    "by_gguf_architecture",
    "by_huggingface",
    "by_name",
    "writers_of_gguf",
]


def by_gguf_architecture(architecture: str, where: str, *, experts: bool = False) -> Family:
    """The family of a GGUF ``general.architecture``, which two may share if one has experts."""
    families = (*FAMILIES, *RAGGED_GGUF)
    known = {f.gguf_architecture: f for f in families if f.gguf_architecture is not None}
    alike = {
        f.gguf_architecture: f
        for f in families
        if f.gguf_architecture is not None and experts == (f.description.blocks.experts is not None)
    }
    return _known(known | alike, architecture, where)


def writers_of_gguf(family: Family) -> tuple[Family, ...]:
    """The families in whose words GGUF may say a model of this one: its own, and Llama's.

    A shape that Llama can say is a Llama's, whatever family it was of; encoders are BERTs.
    """
    if not family.description.blocks.causal:
        return (BERT,)
    own = (family,) if family.gguf_architecture is not None and family != LLAMA else ()
    return (*own, LLAMA, *RAGGED_GGUF)


def by_huggingface(model_type: str, architecture: str, where: str) -> Family:
    """The family of a Hugging Face ``model_type`` and class name; both must fit."""
    known = {family.huggingface_type: family for family in FAMILIES}
    family = _known(known, model_type, where)
    if architecture != family.huggingface_class:
        raise UnsupportedModelError(
            f"{where}: architecture {architecture} does not run here; "
            f"of this family {family.huggingface_class} does"
        )
    return family


def by_name(name: str, where: str) -> Family:
    """The family of that Slimformer name."""
    return _known({family.name: family for family in FAMILIES}, name, where)


def _known(known: dict[str, Family], name: str, where: str) -> Family:
    if name not in known:
        raise UnsupportedModelError(
            f"{where}: model family {name!r} does not run here; known: {', '.join(sorted(known))}"
        )
    return known[name]

"""The model families: how each is named and described in every file format.

A family is data: its names in the formats, the table of its tensor names, and functions from
a format's settings to a ``ModelConfig`` and back. Readers and writers know families only
through this interface. To add one, write a module beside ``llama.py`` and list it in
``FAMILIES``.
"""

from __future__ import annotations

from slimformer.checkpoint.families.family import Family
from slimformer.checkpoint.families.llama import LLAMA
from slimformer.errors import UnsupportedModelError

FAMILIES: tuple[Family, ...] = (LLAMA,)

__all__ = ["FAMILIES", "Family", "by_gguf_architecture", "by_huggingface", "by_name"]


def by_gguf_architecture(architecture: str, where: str) -> Family:
    """The family of a GGUF ``general.architecture``."""
    known = {family.gguf_architecture: family for family in FAMILIES}
    return _known(known, architecture, where)


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

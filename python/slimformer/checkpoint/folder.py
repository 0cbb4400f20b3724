"""Model folders in the style of Hugging Face, theirs and our own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from slimformer.checkpoint import native, nested, packed, sparse_file
from slimformer.checkpoint.check_names import check_names
from slimformer.checkpoint.checkpoint import Checkpoint, Tensor
from slimformer.checkpoint.families import Family, by_huggingface
from slimformer.checkpoint.fields import Fields, parse_json_object, read_json, read_text
from slimformer.checkpoint.folder_tokenizer import read_tokenizer
from slimformer.checkpoint.layout import Layout, folder_layout
from slimformer.checkpoint.safetensors_files import SINGLE_FILE, open_file, open_folder
from slimformer.config import ModelConfig
from slimformer.errors import ConfigError, FormatError, UnsupportedModelError

CONFIG = "config.json"
RECIPE = "recipe.json"

MAX_RECIPE_BYTES = 256 << 20
"""A recipe lists kept neurons one by one: a few bytes for each of some millions."""


def is_model_folder(path: Path) -> bool:
    """Whether the folder has the file that describes a model."""
    return (path / CONFIG).is_file()


def read_folder(folder: Path, width: float | None = None) -> Checkpoint:
    """The model in a folder; tensors stay in their mapped files until they are read.

    Of a folder of several widths it is the one of that ``width``, by default the widest.

    Raises
    ------
    ConfigError
        The folder has no such width.
    FormatError
        A file is truncated or hostile, or the files contradict each other.
    UnsupportedModelError
        The model's family or one of its features does not run here.
    """
    entry = None if width is None else nested.find(folder, width)
    widest = _read_widest(folder)
    if entry is None:
        return widest
    _, config = _shape(entry.settings)
    return dataclasses.replace(
        widest,
        name=f"{widest.name}@{width}",
        config=config,
        tensors=nested.tensors_of(folder, widest, entry, config),
        recipe=entry.recipe,
    )


def _read_widest(folder: Path) -> Checkpoint:
    settings = Fields(str(folder / CONFIG), read_json(folder / CONFIG))
    family, config = _shape(settings)
    recipe = folder / RECIPE
    plain = settings.raw("model_type") != native.MODEL_TYPE
    return Checkpoint(
        name=folder.resolve().name,
        config=config,
        tensors=_weights(folder, family, config, plain=plain),
        sparse=(folder / sparse_file.FILE).exists(),
        tokenizer=read_tokenizer(folder, settings),
        recipe=(
            parse_json_object(read_text(recipe, MAX_RECIPE_BYTES), str(recipe))
            if recipe.exists()
            else None
        ),
    )


def _shape(settings: Fields) -> tuple[Family, ModelConfig]:
    try:
        return _described(settings)
    except ConfigError as error:
        raise FormatError(f"{settings.where}: {error}") from error


def _described(settings: Fields) -> tuple[Family, ModelConfig]:
    kind = settings.text("model_type")
    if kind == native.MODEL_TYPE:
        return native.parse(settings)
    architectures = settings.texts("architectures")
    if len(architectures) != 1:
        settings.fail("architectures", "one class name", architectures)
    family = by_huggingface(kind, architectures[0], settings.where)
    return family, family.from_huggingface(settings)


def _weights(
    folder: Path, family: Family, config: ModelConfig, *, plain: bool
) -> Mapping[str, Tensor]:
    """Stored tensors by canonical name."""
    files = (SINGLE_FILE, sparse_file.FILE, packed.FILE)
    found = [file for file in files if (folder / file).exists()]
    if len(found) > 1:
        raise FormatError(f"{folder}: expected one of {', '.join(files)}, found {len(found)}")
    if found == [packed.FILE]:
        return packed.open_packed(folder / packed.FILE, config)
    if found == [sparse_file.FILE]:
        path = folder / sparse_file.FILE
        layout = folder_layout(family, config, plain=False)
        parts = open_file(path, masks=(sparse_file.MASK,))
        return _take(path, layout, sparse_file.with_zeros(path, layout, parts), config)
    stored = open_folder(folder, without=family.buffers)
    prefix = family.prefix if plain else native.PREFIX
    if not any(name.startswith(prefix) for name in stored):
        stored = {prefix + name: tensor for name, tensor in stored.items()}
    name_of = family.huggingface_name if plain else native.tensor_name
    _drop_repeated_head(folder, name_of, config, stored)
    return _take(folder, folder_layout(family, config, plain=plain), stored, config)


def _take(
    where: Path, layout: Layout, stored: Mapping[str, Tensor], config: ModelConfig
) -> dict[str, Tensor]:
    """What a layout holds, by canonical name in the order of the configuration."""
    check_names(where, layout, stored)
    taken: dict[str, Tensor] = {}
    for entry in layout:
        taken |= entry.take(stored[entry.name])
    return {name: taken[name] for name in config.tensor_shapes()}


def _drop_repeated_head(
    folder: Path, name_of: Callable[[str], str], config: ModelConfig, stored: dict[str, Tensor]
) -> None:
    """A tied head may be stored once more, but only with the embedding's own values."""
    head_name = name_of("head.weight")
    embedding = stored.get(name_of("embedding.weight"))
    if not config.tied_head or head_name not in stored or embedding is None:
        return
    head = stored.pop(head_name)
    same = head.dtype == embedding.dtype and head.shape == embedding.shape
    if not same or head.read().tobytes() != embedding.read().tobytes():
        raise FormatError(
            f"{folder}: tensor {head_name}: expected the values of the embedding, since "
            "tie_word_embeddings is set"
        )


def require_family(folder: Path) -> None:
    """Raise ``UnsupportedModelError`` when a downloaded folder's family does not run here."""
    settings = Fields(str(folder / CONFIG), read_json(folder / CONFIG))
    if settings.text("model_type") != native.MODEL_TYPE:
        architectures = settings.texts("architectures")
        if not architectures:
            raise UnsupportedModelError(f"{settings.where}: architectures: found none")
        by_huggingface(settings.text("model_type"), architectures[0], settings.where)

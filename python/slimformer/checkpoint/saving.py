"""``save``: a model as a Hugging Face style folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimformer.checkpoint import folder_tokenizer, native, nested, packed, sparse_file
from slimformer.checkpoint.cast import cast
from slimformer.checkpoint.checkpoint import Checkpoint, DtypeChoice
from slimformer.checkpoint.families import by_name
from slimformer.checkpoint.fields import read_json
from slimformer.checkpoint.folder import CONFIG, RECIPE
from slimformer.checkpoint.layout import folder_layout
from slimformer.checkpoint.replace_folder import check_place, replace_folder
from slimformer.checkpoint.safetensors_files import SINGLE_FILE, write_file
from slimformer.errors import ConfigError, SlimformerError, StorageError

MODEL_CODE = "modeling_slimformer.py"

_WRITTEN = frozenset(
    (
        *(CONFIG, RECIPE, MODEL_CODE),
        *(nested.FILE, nested.WEIGHTS),
        *(folder_tokenizer.TOKENIZER, folder_tokenizer.SETTINGS, folder_tokenizer.GENERATION),
    )
)

_REPORTS = frozenset(("results.json", "report.html"))
"""What ``slimformer report`` puts beside a model; it describes that model and goes with it."""

_TORCH_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class ModelCode:
    """Python that opens a ragged model in ``transformers``, to be saved beside it.

    ``classes`` are those of ``transformers``' automatic classes that it stands in for, and the
    classes in it.
    """

    text: str
    classes: Mapping[str, str]

    @property
    def settings(self) -> dict[str, str]:
        """What ``config.json`` says of it."""
        stem = MODEL_CODE.removesuffix(".py")
        return {automatic: f"{stem}.{name}" for automatic, name in self.classes.items()}


def save(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    dtype: DtypeChoice = "auto",
    code: ModelCode | None = None,
) -> None:
    """Write a model so that ``load`` gives it back, tensor by tensor.

    A uniform model is a plain checkpoint of its family that ``transformers`` opens; a ragged
    one says so in its ``config.json``. One that is ``sparse`` goes into a file of its own kind,
    see ``sparse_file``, which only Slimformer opens. The same model gives the same bytes. An
    interrupted save leaves the old folder or the new one, never a broken one.

    Parameters
    ----------
    checkpoint:
        The model. It may have been loaded from ``path`` itself.
    path:
        The folder to write. One that Slimformer wrote is replaced; any other is refused.
    dtype:
        What tensors are rounded to; ``auto`` keeps each tensor's own type.
    code:
        What opens the model in ``transformers`` if no class there does.

    Raises
    ------
    StorageError
        The folder cannot be written, or holds something else; nothing was changed.
    ConfigError
        ``dtype`` is not known or cannot hold the values.
    """
    checkpoint = cast(checkpoint, dtype)
    with replace_folder(Path(path), _check_ours) as folder:
        _write_model(checkpoint, folder, code)


def save_nested(
    widest: Checkpoint,
    width: float,
    narrower: Sequence[nested.Narrower],
    path: str | os.PathLike[str],
) -> None:
    """Write models of several widths, of which only the widest is stored in full.

    Tensors of the others are stored if they are not the leading corners of the widest one's.

    Parameters
    ----------
    widest, width:
        The widest model.
    narrower:
        The others, in the order of falling widths.
    path:
        The folder to write, as for ``save``.

    Raises
    ------
    StorageError
        The folder cannot be written, or holds something else; nothing was changed.
    ConfigError
        A model is sparse.
    """
    if any(model.sparse for model in (widest, *(one.model for one in narrower))):
        raise ConfigError("nested: models without their zeros have no corners; save them densely")
    with replace_folder(Path(path), _check_ours) as folder:
        _write_model(widest, folder)
        text = _json(nested.describe(width, narrower))
        (folder / nested.FILE).write_text(text, encoding="utf-8", newline="")
        own = nested.own_tensors(widest, narrower)
        if own:
            write_file(folder / nested.WEIGHTS, own)


def save_packed(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    weights: str,
    tier: str,
    tensors: Mapping[str, packed.PackedTensor],
) -> None:
    """Write a model that was packed for the kernels of one tier; ``load`` maps it.

    Parameters
    ----------
    checkpoint:
        The model, for what is not weights.
    path:
        The folder to write. Another packed model is replaced; anything else is refused.
    weights, tier:
        What it was packed as, and for which kernels.
    tensors:
        All tensors, packed.

    Raises
    ------
    StorageError
        The folder cannot be written, or holds something else; nothing was changed.
    """
    with replace_folder(Path(path), _check_packed) as folder:
        _write_texts(checkpoint, folder)
        packed.write_packed(folder / packed.FILE, weights, tier, tensors)


def check_output(
    path: str | os.PathLike[str], *, needed_bytes: int = 0, packed: bool = False
) -> None:
    """Refuse at once a folder that ``save``, or ``save_packed``, would refuse in the end.

    Parameters
    ----------
    path:
        The folder that a model is to be saved to.
    needed_bytes:
        What the model takes at least.
    packed:
        Whether it is to be ``save_packed``.

    Raises
    ------
    StorageError
        The folder is a file, holds something else, cannot be made or written, or its disk has
        less room.
    """
    place = Path(os.path.realpath(path))
    check_place(place, _check_packed if packed else _check_ours)
    parent = place.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise StorageError(f"{parent}: expected a folder, found a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(f"{parent}: no permission to write")
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise StorageError(
            f"{parent}: {needed_bytes / 1e6:,.0f} MB are needed at least, "
            f"{free / 1e6:,.0f} MB are free"
        )


def _write_model(checkpoint: Checkpoint, folder: Path, code: ModelCode | None = None) -> None:
    family = by_name(checkpoint.config.family, checkpoint.name)
    plain = family.to_huggingface(checkpoint.config) is not None and not checkpoint.sparse
    _write_texts(checkpoint, folder, code)
    tensors = {
        stored.name: stored.join(checkpoint.tensors)
        for stored in folder_layout(family, checkpoint.config, plain=plain)
    }
    if checkpoint.sparse:
        write_file(folder / sparse_file.FILE, sparse_file.without_zeros(tensors))
    else:
        write_file(folder / SINGLE_FILE, tensors)


def _write_texts(checkpoint: Checkpoint, folder: Path, code: ModelCode | None = None) -> None:
    for name, content in _texts(checkpoint, code).items():
        text = content if isinstance(content, str) else _json(content)
        (folder / name).write_text(text, encoding="utf-8", newline="")


def _texts(checkpoint: Checkpoint, code: ModelCode | None) -> dict[str, Mapping[str, Any] | str]:
    """Every file but the weights: JSON objects or text, by name."""
    config = native.describe(checkpoint.config)
    config["torch_dtype"] = _common_type(checkpoint)
    for token in ("bos", "eos", "pad"):  # or transformers takes the family's own
        config.setdefault(f"{token}_token_id", None)
    files: dict[str, Mapping[str, Any] | str] = {}
    if code is not None and config["model_type"] == native.MODEL_TYPE:
        config["auto_map"] = code.settings
        files[MODEL_CODE] = code.text
    if checkpoint.tokenizer is not None:
        files.update(folder_tokenizer.tokenizer_files(checkpoint.tokenizer))
        config["eos_token_id"] = list(checkpoint.tokenizer.stop_ids) or None
    files[CONFIG] = config
    if checkpoint.recipe is not None:
        files[RECIPE] = json.dumps(checkpoint.recipe, ensure_ascii=False) + "\n"
    return files


def _common_type(checkpoint: Checkpoint) -> str:
    """The type in which ``transformers`` loses nothing."""
    types = {tensor.dtype for tensor in checkpoint.tensors.values()}
    return _TORCH_NAMES[types.pop() if len(types) == 1 else "f32"]


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _check_ours(folder: Path) -> None:
    """Refuse to replace a folder unless every file in it is one that ``save`` writes."""
    _check_written(folder, SINGLE_FILE, sparse_file.FILE)


def _check_packed(folder: Path) -> None:
    """The same for ``save_packed``: never the model that packing starts from."""
    _check_written(folder, packed.FILE)


def _check_written(folder: Path, *weights: str) -> None:
    found = {path.name for path in folder.iterdir()}
    foreign = sorted(found - _WRITTEN - _REPORTS - set(weights))
    try:
        ours = not foreign and native.KEY in read_json(folder / CONFIG)
    except SlimformerError:
        ours = False
    if not ours:
        what = f" (it holds {foreign[0]})" if foreign else ""
        raise StorageError(
            f"{folder}: not a folder that Slimformer wrote{what}; choose another one or remove it"
        )

"""A tokenizer as the files of a Hugging Face style folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimformer.checkpoint.check_tokenizer import check_tokenizer
from slimformer.checkpoint.checkpoint import TokenizerAssets
from slimformer.checkpoint.fields import Fields, parse_json_object, read_json, read_text

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"

MAX_TOKENIZER_BYTES = 256 << 20
"""Largest ``tokenizer.json``; vocabularies of 256,000 entries take 35 MB."""

MAX_TEMPLATE_BYTES = 1 << 20


def read_tokenizer(folder: Path, config: Fields) -> TokenizerAssets | None:
    """The tokenizer of a folder, ``None`` when it holds no ``tokenizer.json``.

    ``config`` holds the settings of ``config.json``, which may name the stop tokens.
    """
    path = folder / TOKENIZER
    if not path.exists():
        return None
    text = read_text(path, MAX_TOKENIZER_BYTES)
    description = parse_json_object(text, str(path))
    check_tokenizer(description, str(path))
    settings = _optional(folder / SETTINGS)
    bos, eos = _token_text(settings, "bos_token"), _token_text(settings, "eos_token")
    if "add_bos_token" in settings:
        add_bos = settings.boolean("add_bos_token")
    else:
        add_bos = _begins_with(description.get("post_processor"), bos)
    return TokenizerAssets(
        tokenizer_json=text,
        chat_template=_chat_template(folder, settings),
        bos=bos,
        eos=eos,
        add_bos=add_bos and bos is not None,
        stop_ids=_stop_ids(_optional(folder / GENERATION), config, description, eos),
    )


def tokenizer_files(assets: TokenizerAssets) -> dict[str, Mapping[str, Any] | str]:
    """Contents of the files that ``read_tokenizer`` reads, by name; JSON objects or text."""
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if assets.bos is not None:
        settings["bos_token"] = assets.bos
    if assets.eos is not None:
        settings["eos_token"] = assets.eos
    settings["add_bos_token"] = assets.add_bos
    settings["clean_up_tokenization_spaces"] = False
    if assets.chat_template is not None:
        settings["chat_template"] = assets.chat_template
    files: dict[str, Mapping[str, Any] | str] = {
        TOKENIZER: assets.tokenizer_json,
        SETTINGS: settings,
    }
    if assets.stop_ids:
        files[GENERATION] = {"eos_token_id": list(assets.stop_ids)}
    return files


def _optional(path: Path) -> Fields:
    return Fields(str(path), read_json(path) if path.exists() else {})


def _token_text(settings: Fields, key: str) -> str | None:
    """A special token, given as its text or as an object with its ``content``."""
    if key not in settings:
        return None
    if isinstance(settings.raw(key), dict):
        return settings.child(key).text("content")
    return settings.text(key)


def _chat_template(folder: Path, settings: Fields) -> str | None:
    if (folder / TEMPLATE).exists():
        return read_text(folder / TEMPLATE, MAX_TEMPLATE_BYTES)
    value = settings.raw("chat_template")
    if isinstance(value, list):
        named = {
            entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)
        }
        value = named.get("default")
    if value is None:
        return None
    if not isinstance(value, str):
        settings.fail("chat_template", "a string or a list with one named default", value)
    return value


def _begins_with(post_processor: Any, bos: str | None) -> bool:
    """Whether a post-processor puts the beginning-of-sequence token before a text."""
    if not isinstance(post_processor, dict):
        return False
    if post_processor.get("type") == "Sequence":
        steps = post_processor.get("processors")
        return isinstance(steps, list) and any(_begins_with(step, bos) for step in steps)
    single = post_processor.get("single")
    if not isinstance(single, list) or not single or not isinstance(single[0], dict):
        return False
    first = single[0].get("SpecialToken")
    return isinstance(first, dict) and bos is not None and first.get("id") == bos


def _stop_ids(
    generation: Fields, config: Fields, description: Mapping[str, Any], eos: str | None
) -> tuple[int, ...]:
    """Ids that end a generation: as told for generation, else for the model, else ``eos``."""
    for settings in (generation, config):
        if "eos_token_id" not in settings:
            continue
        value = settings.raw("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        if not all(type(index) is int and index >= 0 for index in ids):
            settings.fail("eos_token_id", "a token id or a list of them", value)
        return tuple(sorted(set(ids)))
    added = description.get("added_tokens")
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict) and entry.get("content") == eos and type(entry.get("id")) is int:
            return (entry["id"],)
    return ()

"""The tokenizer in a model's folder, read as untrusted input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.models import random_checkpoint, random_config, tiny_tokenizer
from slimformer.checkpoint import load, save
from slimformer.errors import FormatError

Write = Callable[[dict[str, Any]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a model and files beside it, text or JSON."""

    def write_folder(files: dict[str, Any]) -> Path:
        folder = tmp_path / "model"
        if not folder.exists():
            config = random_config(np.random.default_rng(2), ragged=False)
            save(random_checkpoint(config, 2), folder)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
        return folder

    return write_folder


def test_the_tokenizer_comes_with_the_folder(write: Write) -> None:
    assets = tiny_tokenizer()
    assert load(write({})).tokenizer is None
    files: dict[str, Any] = {
        "tokenizer.json": assets.tokenizer_json,
        "tokenizer_config.json": {
            "bos_token": {"content": "<|begin|>", "lstrip": False},
            "eos_token": "<|end|>",
            "chat_template": [
                {"name": "tool_use", "template": "no"},
                {"name": "default", "template": "yes"},
            ],
        },
    }
    read = load(write(files)).tokenizer
    assert read is not None
    assert (read.bos, read.eos, read.chat_template) == ("<|begin|>", "<|end|>", "yes")
    assert read.stop_ids == (1,)
    assert not read.add_bos
    files["chat_template.jinja"] = "from the file"
    files["generation_config.json"] = {"eos_token_id": [7, 1]}
    read = load(write(files)).tokenizer
    assert read is not None
    assert read.chat_template == "from the file"
    assert read.stop_ids == (1, 7)


def test_bos_is_added_as_the_post_processor_does(write: Write) -> None:
    settings = json.loads(tiny_tokenizer().tokenizer_json)
    begin = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}},
    }
    for processor in (template, {"type": "Sequence", "processors": [template]}):
        settings["post_processor"] = processor
        files = {"tokenizer.json": settings, "tokenizer_config.json": {"bos_token": "<|begin|>"}}
        read = load(write(files)).tokenizer
        assert read is not None
        assert read.add_bos


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{"}, "tokenizer.json: not valid JSON"),
        ({"tokenizer_config.json": {"bos_token": 3}}, "bos_token"),
        ({"tokenizer_config.json": {"bos_token": {"content": 3}}}, "content"),
        ({"tokenizer_config.json": {"chat_template": 3}}, "chat_template"),
        ({"generation_config.json": {"eos_token_id": "x"}}, "eos_token_id"),
        ({"generation_config.json": {"eos_token_id": [-1]}}, "eos_token_id"),
    ],
)
def test_broken_tokenizer_files_are_format_errors(
    write: Write, files: dict[str, Any], message: str
) -> None:
    files = {"tokenizer.json": tiny_tokenizer().tokenizer_json, **files}
    with pytest.raises(FormatError, match=message):
        load(write(files))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model",), None, "model: expected an object, found None"),
        (("model", "type"), "Oracle", "type: expected one of BPE, .*, found 'Oracle'"),
        (("model", "vocab"), {"a": "0"}, "expected token ids by token"),
        (("model", "vocab"), {"a": -1}, "expected token ids by token"),
        (("model", "vocab"), [["a", 0.5], ["b"]], "pairs of a token and a score"),
        (("model", "merges"), 3, "merges: expected a list"),
        (("model", "merges"), ["a b c"], "expected two tokens, found 'a b c'"),
        (("model", "merges"), [["a", 3]], "expected two tokens"),
        (("model", "merges"), [["a", "zz"]], "not of tokens in the vocabulary"),
        (("pre_tokenizer",), {"type": "Psychic"}, "not a valid tokenizer"),
        (("added_tokens",), [{"id": 0}], "not a valid tokenizer"),
    ],
)
def test_tokenizers_that_cannot_be_made_are_refused_when_loaded(
    write: Write, path: tuple[str, ...], value: Any, message: str
) -> None:
    description = json.loads(tiny_tokenizer().tokenizer_json)
    place = description
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(FormatError, match=f"tokenizer.json: .*{message}"):
        load(write({"tokenizer.json": description}))

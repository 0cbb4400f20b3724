"""Questions with known answers, and the jsonl files that they come in.

Three forms of a line are understood:

- ``{"context", "choices", "gold"}``: which of several continuations belongs to a context;
- ``{"contexts", "continuation", "gold"}``: the same continuation after several contexts;
- ``{"context", "continuation"}``: would the model itself write this continuation?
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slimformer.errors import DataError, StorageError


@dataclasses.dataclass(frozen=True)
class Item:
    """One question: pairs of a context and a continuation.

    ``gold`` is the index of the right pair. It is ``None`` for last-word prediction, where
    there is one pair and the model has to produce its continuation by itself.
    """

    pairs: tuple[tuple[str, str], ...]
    gold: int | None


@dataclasses.dataclass(frozen=True)
class Task:
    """Items of one kind under one name."""

    name: str
    items: tuple[Item, ...]

    @property
    def is_last_word(self) -> bool:
        """Whether the model has to produce the answers rather than to choose them."""
        return self.items[0].gold is None


def find_tasks(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Task files: those given, and the ``*.jsonl`` of the folders given, by name.

    Raises
    ------
    StorageError
        A path does not exist.
    DataError
        A folder has no ``*.jsonl``.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise StorageError(f"{path}: no such file or folder")
            found.append(path)
            continue
        files = sorted(path.glob("*.jsonl"))
        if not files:
            raise DataError(f"{path}: expected *.jsonl files, found none")
        found += files
    return found


def load_task(path: str | os.PathLike[str]) -> Task:
    """Read a task file; its name is that of the file without the ending.

    Raises
    ------
    StorageError
        The file cannot be read.
    DataError
        A line is malformed, lines are of different kinds, or there are none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, found {error.reason}") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    items: list[Item] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = _parse_item(line)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        if items and (item.gold is None) != (items[0].gold is None):
            raise DataError(f"{path}:{number}: expected the same kind of item as above")
        items.append(item)
    if not items:
        raise DataError(f"{path}: expected one item a line, found none")
    return Task(Path(path).stem, tuple(items))


def recurring_words(text: str, *, count: int, name: str, context_words: int = 60) -> Task:
    """Make a last-word task of prose: words that the model has to write as the author did.

    As in LAMBADA (Paperno et al. 2016) the word can be known from its context: only words of
    four letters or more are asked that occur among the ``context_words`` words before them.
    They are spread evenly over the text.

    Raises
    ------
    DataError
        The text has no such word.
    """
    words = list(re.finditer(r"\S+", text))
    found: list[Item] = []
    for index in range(context_words, len(words)):
        match = re.fullmatch(r"([a-z]{4,})[.,;:!?]?", words[index].group())
        before = words[index - context_words : index]
        if match is None or match.group(1) not in {_bare(word.group()) for word in before}:
            continue
        context = text[before[0].start() : before[-1].end()]
        found.append(Item(((context, " " + match.group(1)),), None))
    if not found:
        raise DataError(f"{name}: found no word that its context gives away")
    step = max(1.0, len(found) / count)
    chosen = [found[int(index * step)] for index in range(min(count, len(found)))]
    return Task(name, tuple(chosen))


def _bare(word: str) -> str:
    return word.strip(".,;:!?()\"'")


def _parse_item(line: str) -> Item:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"expected a JSON object, found {line[:40]!r}") from error
    if not isinstance(fields, dict):
        raise DataError(f"expected a JSON object, found {line[:40]!r}")
    if "contexts" in fields:
        contexts = _texts(fields, "contexts")
        continuation = _text(fields, "continuation")
        pairs = tuple(_joined(context, continuation) for context in contexts)
        return Item(pairs, _gold(fields, len(pairs)))
    context = _text(fields, "context", may_be_empty=True)
    if "choices" in fields:
        pairs = tuple(_joined(context, choice) for choice in _texts(fields, "choices"))
        return Item(pairs, _gold(fields, len(pairs)))
    return Item((_joined(context, _text(fields, "continuation")),), None)


def _text(fields: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise DataError(f"{name}: expected a text, found {value!r}")
    return value


def _texts(fields: Mapping[str, Any], name: str) -> list[str]:
    values = fields[name]
    if not isinstance(values, list) or len(values) < 2:
        raise DataError(f"{name}: expected a list of two texts at least, found {values!r}")
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{name}: expected texts, found {value!r}")
    return values


def _gold(fields: Mapping[str, Any], choices: int) -> int:
    gold = fields.get("gold")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < choices:
        raise DataError(f"gold: expected an integer from 0 to {choices - 1}, found {gold!r}")
    return gold


def _joined(context: str, continuation: str) -> tuple[str, str]:
    """Put a space between the two where neither side has white space."""
    if context and not context[-1].isspace() and not continuation[0].isspace():
        return context, " " + continuation
    return context, continuation

"""Task files: the three forms of a line, and lines that are none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimformer.errors import DataError, StorageError
from slimformer.evaluate import Item, find_tasks, load_task, recurring_words


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_three_forms(tmp_path: Path) -> None:
    chosen = write(
        tmp_path / "chosen.jsonl",
        '{"context": "The river is", "choices": ["wet.", " dry."], "gold": 0, "id": 7}',
        "",
        '{"contexts": ["So Ann ", "So Bea"], "continuation": "left.", "gold": 1}',
    )
    task = load_task(chosen)
    assert task.name == "chosen"
    assert not task.is_last_word
    assert task.items == (
        Item((("The river is", " wet."), ("The river is", " dry.")), 0),
        Item((("So Ann ", "left."), ("So Bea", " left.")), 1),
    )
    last = write(tmp_path / "last.jsonl", '{"context": "It was the", "continuation": " end"}')
    assert load_task(last).items == (Item((("It was the", " end"),), None),)
    assert load_task(last).is_last_word


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "JSON object"),
        ("[1]", "JSON object"),
        ("[" * 100_000, "JSON object"),
        ('{"choices": ["a", "b"], "gold": 0}', "context"),
        ('{"context": "a", "choices": ["b"], "gold": 0}', "choices"),
        ('{"context": "a", "choices": ["b", ""], "gold": 0}', "choices"),
        ('{"context": "a", "choices": ["b", 3], "gold": 0}', "choices"),
        ('{"context": "a", "choices": ["b", "c"], "gold": 2}', "gold"),
        ('{"context": "a", "choices": ["b", "c"], "gold": true}', "gold"),
        ('{"context": "a", "choices": ["b", "c"]}', "gold"),
        ('{"context": "a"}', "continuation"),
        ('{"context": "a", "continuation": "b"}', "same kind"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    good = '{"context": "a", "choices": ["b", "c"], "gold": 1}'
    path = write(tmp_path / "task.jsonl", good, line)
    with pytest.raises(DataError, match=message) as caught:
        load_task(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_files_without_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none"):
        load_task(write(tmp_path / "empty.jsonl"))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff")
    with pytest.raises(DataError, match="UTF-8"):
        load_task(tmp_path / "binary.jsonl")
    with pytest.raises(StorageError):
        load_task(tmp_path)


def test_folders_give_their_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    with pytest.raises(DataError, match="found none"):
        find_tasks([folder])
    second, first = write(folder / "b.jsonl"), write(folder / "a.jsonl")
    write(folder / "notes.txt")
    single = write(tmp_path / "single.json")
    assert find_tasks([single, folder]) == [single, first, second]
    with pytest.raises(StorageError, match="no such"):
        find_tasks([tmp_path / "missing"])


def test_recurring_words_follow_from_their_context() -> None:
    filler = "it is so and one is as two and two as one and so on"
    text = f"A river ran by. {filler} along the river. {filler} (river) {filler} to a river, or so."
    task = recurring_words(text, count=5, name="words", context_words=20)
    assert task.is_last_word
    assert len(task.items) == 2
    for item in task.items:
        ((context, continuation),) = item.pairs
        assert continuation == " river"
        assert len(context.split()) == 20
        assert "river" in context
        assert context + continuation in text
    assert len(recurring_words(text, count=1, name="words", context_words=20).items) == 1
    with pytest.raises(DataError, match="no word"):
        recurring_words("too short.", count=5, name="words")

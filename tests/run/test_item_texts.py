from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.run.folder import RunFolder
from evomerge.run.items import MOST_CHARACTERS, read_texts, write_texts


class Fitness:
    def __init__(self, found: Any) -> None:
        self._found = found

    def texts(self, most: int) -> Any:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def test_there_and_back(folder: RunFolder) -> None:
    texts = {"sums": [{"prompt": "1 + 1 =", "target": "2"}], "talk": [{"prompt": "はい", "target": ""}]}
    write_texts(folder, "held_out", Fitness(texts))
    assert read_texts(folder, "held_out") == texts
    assert read_texts(folder, "search") == {}


def test_of_long_prompts_the_end_stays(folder: RunFolder) -> None:
    write_texts(folder, "search", Fitness({"sums": [{"prompt": "x" * 5000 + " question?", "target": "y" * 5000}]}))
    (item,) = read_texts(folder, "search")["sums"]
    assert len(item["prompt"]) == len(item["target"]) == MOST_CHARACTERS
    assert item["prompt"].startswith("…x")
    assert item["prompt"].endswith(" question?")


def test_too_much_is_not_written(folder: RunFolder) -> None:
    items = [{"prompt": f"{i}" * 1000, "target": ""} for i in range(5000)]
    write_texts(folder, "search", Fitness({"sums": items}))
    assert list(folder.items.iterdir()) == []


def test_a_fitness_without_texts_or_that_fails_costs_nothing(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    write_texts(folder, "search", object())
    assert caplog.text == ""
    write_texts(folder, "search", Fitness(RuntimeError("no such template")))
    assert "RuntimeError: no such template" in caplog.text
    assert list(folder.items.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"evomerge_texts": 2, "tasks": {}}', '{"evomerge_texts": 1, "tasks": {"a": [1]}}', "\xff"],
)
def test_other_files_have_no_texts(content: str, folder: RunFolder) -> None:
    (folder.items / "search-texts.json").write_text(content, encoding="latin-1")
    assert read_texts(folder, "search") == {}


def test_what_is_no_text_becomes_one(folder: RunFolder) -> None:
    tasks = {"sums": [{"prompt": 3, "target": None}]}
    (folder.items / "search-texts.json").write_text(json.dumps({"evomerge_texts": 1, "tasks": tasks}))
    assert read_texts(folder, "search") == {"sums": [{"prompt": "3", "target": "None"}]}

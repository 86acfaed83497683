"""Items that statistics of data are made on: from files, and from tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import ConfigError, FitnessError
from evomerge.protocols import CalibrationItem
from fitness._documents import asked_hash
from fitness.calibration_tasks import TaskItems
from fitness.calibration_texts import TextItems
from fitness.files import FilesFitness
from fitness.lm_eval_tasks import LmEvalFitness
from fitness.unlabelled import UnlabelledFitness


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def test_lines_of_json_and_of_text(tmp_path: Path) -> None:
    rows = write(
        tmp_path / "rows.jsonl",
        {"text": "two and two", "answer": "four"},
        {"text": "so: ", "answer": "x"},
        {"text": "a"},
    )
    plain = write(tmp_path / "plain.txt", "one line", "", "another")
    found = TextItems([rows, plain])
    found.check()
    assert list(found.items("any")) == [
        CalibrationItem("two and two", " four"),
        CalibrationItem("so: ", "x"),
        CalibrationItem("a"),
        CalibrationItem("one line"),
        CalibrationItem("another"),
    ]


def test_each_model_has_its_own_files_and_a_draw_that_stays(tmp_path: Path) -> None:
    files = {name: [write(tmp_path / f"{name}.txt", *(f"{name} {n}" for n in range(50)))] for name in ("a", "b")}
    found = TextItems(files, items=5)
    drawn = found.items("a")
    assert len(drawn) == 5
    assert drawn == TextItems(files, items=5).items("a") != TextItems(files, items=5, seed=1).items("a")
    numbers = [int(item.text.split()[1]) for item in drawn]
    assert numbers == sorted(set(numbers))
    assert all(item.text.startswith("b ") for item in found.items("b"))
    assert len(found.documents()) == 10
    with pytest.raises(ConfigError, match="files says nothing of model 'c'"):
        found.items("c")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("no JSON", " is no JSON"),
        ({"texts": "x"}, " has no key 'text'; did you mean 'texts'"),
        ({"text": 3}, ": its text is '3'"),
        ({"answer": " "}, " has no text"),
        ("[]", " is no mapping"),
    ],
)
def test_lines_that_are_no_items(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(FitnessError, match=f"line 2{said}"):
        TextItems([write(tmp_path / "rows.jsonl", {"text": "a"}, row)]).check()


TASK: dict[str, Any] = {
    "task": "sums",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "Q: {{q}}\nA:",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["\n"]},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def task(folder: Path, **settings: Any) -> str:
    splits = {
        split: write(folder / f"{split}.jsonl", *({"q": f"{n}+1", "a": str(n + 1)} for n in numbers))
        for split, numbers in (("train", range(3)), ("test", range(10, 14)))
    }
    (folder / "sums.yaml").write_text(yaml.safe_dump({**TASK, "dataset_kwargs": {"data_files": splits}, **settings}))
    return str(folder / "sums.yaml")


def test_documents_of_tasks_with_their_right_answers(tmp_path: Path) -> None:
    file = task(tmp_path, training_split="train")
    found = TaskItems([file])
    found.check()
    assert list(found.items("any")) == [CalibrationItem(f"Q: {n}+1\nA:", f" {n + 1}") for n in range(3)]
    assert found.documents()[0][0] == asked_hash("Q: 0+1\nA:", (), "1")
    scored = TaskItems([file], split="scored", items=2)
    scored.check()
    assert len(scored.items("any")) == 2
    fitness = LmEvalFitness([file])
    fitness.check()
    asked = {document[0] for document in fitness.documents()}
    assert all(document[0] in asked for document in scored.documents())
    assert not any(document[0] in asked for document in found.documents())


def test_a_line_is_the_same_item_whoever_reads_it(tmp_path: Path) -> None:
    """Or held-out texts could be calibrated on, and a held-out task's own file be searched on, without a word."""
    lines = write(tmp_path / "lines.jsonl", {"text": "one two"}, {"text": "three "})
    plain = write(tmp_path / "lines.txt", "one two", "three")
    own = TextItems([lines])
    own.items("any")
    for file, key in ((lines, {"key": "text"}), (plain, {})):
        read = UnlabelledFitness({"own": {"file": file}}).documents()
        assert [asked for asked, _ in read] == [asked for asked, _ in own.documents()]
        assert FilesFitness({"own": {"file": file, **key}}).documents() == read

    task_file = task(tmp_path)
    scored = LmEvalFitness([task_file])
    scored.check()
    texts = UnlabelledFitness({"own": {"file": str(tmp_path / "test.jsonl"), "key": "q"}})
    assert [content for _, content in texts.documents()] == [content for _, content in scored.documents()]


def test_the_right_choice_is_the_answer(tmp_path: Path) -> None:
    choices = {"output_type": "multiple_choice", "doc_to_choice": ["no", "yes"], "doc_to_target": 1}
    metric = {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
    found = TaskItems([task(tmp_path, training_split="train", **choices, **metric)])
    found.check()
    assert {item.answer for item in found.items("any")} == {" yes"}


def test_a_split_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(FitnessError, match="has no train documents; it has scored documents"):
        TaskItems([task(tmp_path)]).check()

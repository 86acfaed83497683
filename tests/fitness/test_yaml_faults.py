"""Faults of a task's YAML that lm-eval trips over: the key is named, and what would have been taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import FitnessError
from fitness.lm_eval_tasks import LmEvalFitness


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"q": f"w{i}", "a": "w9"}) + "\n" for i in range(3)))
    (tmp_path / "empty.jsonl").write_text("")
    return {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "q",
        "doc_to_target": "a",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


CHOICE = {"output_type": "multiple_choice", "doc_to_choice": ["x", "y"]}
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"dataset_kwargs": {"data_files": {"test": "EMPTY"}}}, "which is empty; a file with at least one document"),
    ({"test_split": "tset"}, "test_split is 'tset'; a split of data_files; did you mean 'test'?"),
    ({"test_split": 3}, "test_split is 3; a split of data_files; one of: test"),
    ({"fewshot_split": "x", "num_fewshot": 1}, "fewshot_split is 'x'; a split of data_files; one of: test"),
    ({"filter_list": [{"name": "a", "filter": [{"function": "regx"}]}]}, "is 'regx'; did you mean 'regex'?"),
    ({"filter_list": 3}, "filter_list is 3; a list of {name: NAME, filter: [{function: ...}]}; correct filter_list in"),
    ({"filter_list": [{"name": "a"}]}, "filter_list is [{'name': 'a'}]; a list of"),
    ({"metric_list": [{"metric": "acc", "aggregation": "maen"}]}, "aggregation of acc is 'maen'; did you mean 'mean'?"),
    ({"metric_list": [{"metric": "acc", "aggregation": 5}]}, "aggregation of acc is 5; one of: "),
    ({"metric_list": [{"metric": "akk"}]}, "a metric of metric_list is 'akk'; one of: acc"),
    ({"metric_list": [{"metric": "akk", "aggregation": "mean"}]}, "there is no metric 'akk'; one of: acc"),
    ({"metric_list": "acc"}, "metric_list is 'acc'; a list of {metric: NAME"),
    ({"doc_to_target": 7, **CHOICE}, "the target of its first document is none of its choices; the number of a choice"),
    ({**CHOICE, "doc_to_target": 0, "doc_to_choice": [1, 2]}, "doc_to_choice is [1, 2]; a field of the documents"),
    ({"output_type": "generate_until", "generation_kwargs": 3}, "generation_kwargs is 3; a mapping such as"),
    ({"dataset_path": 5}, "dataset_path is 5; a name of the hub, or a reader"),
]


@pytest.mark.parametrize(("change", "says"), FAULTS, ids=lambda each: str(each)[:60])
def test_the_key_is_named(change: dict[str, Any], says: str, task: dict[str, Any], tmp_path: Path) -> None:
    text = yaml.safe_dump({**task, **change}).replace("EMPTY", str(tmp_path / "empty.jsonl"))
    (tmp_path / "sums.yaml").write_text(text)
    for source in ({"task": yaml.safe_load(text)}, str(tmp_path / "sums.yaml")):
        with pytest.raises(FitnessError) as error:
            LmEvalFitness([source]).check()
        assert says in str(error.value)
        assert str(error.value).startswith("task '")
        assert "\n" not in str(error.value)


def test_a_list_is_no_name(task: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump({**task, "task": ["x"]}))
    with pytest.raises(FitnessError, match=r"calls its task .*; a name: text$"):
        LmEvalFitness([str(tmp_path / "sums.yaml")]).check()


def test_functions_of_ones_own_are_none(task: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def total(values):\n    return sum(values)\n\n\ndef one(doc, results):\n    return {'m': 1}\n"
    )
    text = yaml.safe_dump({**task, "metric_list": ["LIST"]}).replace(
        "- LIST", "- {metric: m, aggregation: !function own.total}"
    )
    (tmp_path / "sums.yaml").write_text(text + "process_results: !function own.one\n")
    LmEvalFitness([str(tmp_path / "sums.yaml")]).check()

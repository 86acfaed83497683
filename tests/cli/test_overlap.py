"""Items that give themselves away: held-out items that are the search's, examples that are the items."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.cli.main import main
from evomerge.run.ledger import read_ledger


def write(
    folder: Path, name: str, numbers: range, extra: Callable[[int], dict[str, Any]] | None = None, **settings: object
) -> Path:
    """A task of its own name; its documents are the numbers, with what `extra` adds to each."""
    also = extra or (lambda number: {})
    rows = [json.dumps({"q": f"{number} wa", "a": f"{number + 1}", **also(number)}) for number in numbers]
    (folder / f"{name}.jsonl").write_text("\n".join(rows))
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{q}}",
        "doc_to_target": " {{a}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **settings,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def words(pool: Path, search: Path, held_out: Path) -> list[str]:
    plain = [f"pool.models={{base: '{pool}/base', math: '{pool}/math'}}", "pool.base=base", "search_space=linear"]
    return [*plain, f"fitness.tasks=['{search}']", "fitness@held_out=lm_eval", f"held_out.tasks=['{held_out}']"]


def test_the_same_documents_under_another_name_are_an_error(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = write(tmp_path, "one", range(6)), write(tmp_path, "other", range(4))
    assert main(["validate", *words(quick_pool, one, other)]) == 2
    assert "all 4 held-out items are items of the search" in capsys.readouterr().err
    assert main(["validate", *words(quick_pool, one, other), "search.allow_overlap=true"]) == 0
    assert "100% of the held-out items are items of the search too" in " ".join(capsys.readouterr().err.split())


CHOICE = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{choices.index(a)}}"}


def test_an_identifier_makes_no_other_question(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path, "one", range(4), lambda number: {"id": f"one/{number}", "from": ["a", 1]})
    other = write(tmp_path, "other", range(4), lambda number: {"id": f"other/{number + 7}"})
    assert main(["validate", *words(quick_pool, one, other)]) == 2
    assert "all 4 held-out items are items of the search" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("choices", "status"),
    [((0, 1, 2), 2), ((2, 1, 0), 2), ((0, 1, 3), 0), ((0, 1), 0)],
    ids=["the same choices", "in another order", "another choice", "a choice less"],
)
def test_other_choices_make_another_question(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], choices: tuple[int, ...], status: int
) -> None:
    def of(*added: int) -> Callable[[int], dict[str, Any]]:
        return lambda number: {"id": str(added), "choices": [f"{number + each}" for each in added]}

    one = write(tmp_path, "one", range(4), of(0, 1, 2), **CHOICE)
    other = write(tmp_path, "other", range(4), of(*choices), **CHOICE)
    assert main(["validate", *words(quick_pool, one, other)]) == status
    assert ("are items of the search" in capsys.readouterr().err) == (status == 2)


def test_other_targets_make_another_question(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path, "one", range(4))
    other = write(tmp_path, "other", range(4), lambda number: {"a": f"{number + 2}"})
    assert main(["validate", *words(quick_pool, one, other)]) == 0
    assert "of the search" not in " ".join(capsys.readouterr().err.split())


def test_documents_that_are_asked_in_other_words_are_said(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = write(tmp_path, "one", range(6)), write(tmp_path, "other", range(3, 7), doc_to_text="Q: {{q}}")
    assert main(["validate", *words(quick_pool, one, other)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "75% of the held-out items are documents of the search, asked in other words" in said
    assert "items of the search too" not in said


def test_what_overlaps_in_part_is_said_and_kept(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = write(tmp_path, "one", range(6)), write(tmp_path, "other", range(3, 7))
    few = ["search.evaluations=2", "strategy=random", "search.baselines=false", "display=quiet"]
    run = tmp_path / "run"
    assert main(["search", *words(quick_pool, one, other), *few, f"run_dir='{run}'"]) == 0
    assert "75% of the held-out items" in " ".join(capsys.readouterr().err.split())
    assert next(event for event in read_ledger(run) if event["event"] == "started")["overlap"] == 0.75


@pytest.mark.parametrize("split", [None, "train"])
def test_examples_that_are_the_items_are_said(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str | None
) -> None:
    files = {"test": str(tmp_path / "one.jsonl"), "train": str(tmp_path / "other.jsonl")}
    named = {"fewshot_split": split, "training_split": "train"} if split else {}
    other = write(tmp_path, "other", range(10, 14))
    one = write(tmp_path, "one", range(6), num_fewshot=2, dataset_kwargs={"data_files": files}, **named)
    assert main(["validate", *words(quick_pool, one, other)]) == 0
    said = "examples of one are drawn from the items that are scored" in " ".join(capsys.readouterr().err.split())
    assert said == (split is None)

"""Whatever a task's YAML and data hold, loading it works or ends in one line, soon.

`scripts/fuzz_tasks.py` tries all cases; these are some of them, the same in every run.
"""

from __future__ import annotations

import random
from pathlib import Path

import datasets
import pytest

from evomerge.errors import EvomergeError
from scripts import fuzz_tasks
from scripts.fuzz_tasks import SPECIAL, Case, cases, try_case, without_built_in_tasks


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_changed_keys_and_files(part: int, tmp_path: Path) -> None:
    every = cases()
    chosen = random.Random(part).sample(every, 25)
    special = [case for case in every if case.name.partition(": ")[2] in SPECIAL]
    chosen += special[part::4]
    with without_built_in_tasks():
        problems = {case.name: try_case(case, tmp_path) for case in chosen}
    assert {name: problem for name, problem in problems.items() if problem} == {}


@pytest.mark.parametrize("name", ["choice: doc_to_choice = null", "choice: task = control characters"])
def test_what_was_found_before(name: str, tmp_path: Path) -> None:
    with without_built_in_tasks():
        assert try_case(next(case for case in cases() if case.name == name), tmp_path) == ""


def test_the_tasks_themselves_are_taken(tmp_path: Path) -> None:
    for number, kind in enumerate(fuzz_tasks.KINDS):
        place = tmp_path / str(number)
        fuzz_tasks.make_task(place, kind)
        fuzz_tasks._load(str(place / "mine.yaml"), None)


def test_what_a_case_must_not_do_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Case("nothing", "choice", lambda folder: None)

    def broken(*_: object) -> None:
        raise KeyError("x")

    def several_lines(*_: object) -> None:
        raise EvomergeError("a\nb")

    def talks(*_: object) -> None:
        print("hello")

    for load, problem in ((broken, "KeyError: 'x'"), (several_lines, "2 lines"), (talks, "it printed 'hello")):
        monkeypatch.setattr(fuzz_tasks, "_load", load)
        assert problem in try_case(nothing, tmp_path)

"""Searches side by side: the table of `scripts/compare_searches.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.config.compose import compose_config
from scripts.compare_searches import best_so_far, items_scored, main


def models(counts: tuple[int, int]) -> dict[str, dict[str, np.ndarray]]:
    """A baseline right on half of the items, and a winner right on these many of 100 a task."""

    def items(first: int, second: int) -> dict[str, np.ndarray]:
        names = ("demo_a_held_out/acc", "demo_b_held_out/acc")
        return {
            name: np.repeat([1.0, 0.0], [right, 100 - right])
            for name, right in zip(names, (first, second), strict=True)
        }

    return {"math": items(50, 50), "best": items(*counts)}


def test_runs_are_tested_in_pairs_and_together(make_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"p0": (60, 60), "p1": (70, 60), "h0": (60, 60), "h1": (80, 70)}
    folders = {name: make_run(models(own), name=name) for name, own in counts.items()}
    assert main([f"{'one' if name[0] == 'p' else 'two'}={folder}" for name, folder in folders.items()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "|  | a | b | mean | against one | p |"
    assert lines[2] == "| math | 0.500 | 0.500 | 0.500 |  |  |"
    assert lines[3:6] == [
        "| one 0 | 0.600 | 0.600 | 0.600 |  |  |",
        "| two 0 | 0.600 | 0.600 | 0.600 | +0.000 | 1 |",
        "| one 1 | 0.700 | 0.600 | 0.650 |  |  |",
    ]
    assert lines[6] == "| two 1 | 0.800 | 0.700 | 0.750 | +0.100 | 1.9e-6 |"  # 20 items won, none lost: 2 / 2^20
    assert lines[7] == "| one, all 2 | 0.650 | 0.600 | 0.625 |  |  |"
    assert lines[8].startswith("| two, all 2 | 0.700 | 0.650 | 0.675 | +0.050 | ")


def test_tasks_weigh_what_they_do_in_the_first_run(make_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The second search weighs its first task three times; compared with one that does not, it counts once."""

    def weighed(first: float) -> dict[str, list[list[object]]]:
        listed: list[list[object]] = [
            [f"demo_{task}_held_out/acc", weight, "maximize", "score", ""]
            for task, weight in (("a", first), ("b", 1.0))
        ]
        return {"search": listed, "held_out": listed}

    plain = [make_run(models((60, 60)), name=f"plain{i}", shares=weighed(1.0)) for i in range(2)]
    heavy = [make_run(models((50, 80)), name=f"heavy{i}", shares=weighed(3.0)) for i in range(2)]
    assert main([*(f"one={run}" for run in plain), *(f"two={run}" for run in heavy)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].startswith("| two 0 | 0.500 | 0.800 | 0.650 | +0.050 | ")
    assert lines[8].startswith("| two, all 2 | 0.500 | 0.800 | 0.650 | +0.050 | ")


def test_searches_on_pools_are_kept_and_tested_over_all_items(
    make_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: 60 and 65 of 100 on the pools, and 70 and 75: 40 items won of 400, none lost."""
    counts = {"cma_es-seed1": (60, 60), "cma_es-seed2": (70, 60), "mixed-seed1": (70, 70), "mixed-seed2": (80, 70)}
    asked: dict[str, list[str]] = {}

    def made(*words: str, display: str) -> None:
        name = Path(words[-1].removeprefix("run_dir='").removesuffix("'")).name
        asked[name] = [*words]
        make_run(models(counts[name]), name=f"out/{name}")

    monkeypatch.setattr("scripts.compare_searches.search", made)
    arguments = ["cma_es", "mixed=experiment=medsamix strategy.trees=5", "--overrides", "search.evaluations=150"]
    arguments += ["--pools", "pools/seed1", "pools/seed2", "--runs", str(tmp_path / "out")]
    for _ in range(2):  # the second time nothing is searched again: `make_run` refuses a folder that is there
        assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[:6] == [
        "|  | seed1 | seed2 | mean | against cma_es | p |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| math | 0.500 | 0.500 | 0.500 |  |  |",
        "| cma_es | 0.600 | 0.650 | 0.625 |  |  |",
        "| mixed | 0.700 | 0.750 | 0.725 | +0.100 | 1.8e-12 |",  # 2 / 2^40
        "|  | seed1 | seed2 | mean | against cma_es | p |",
    ]
    assert len(asked) == 4
    config = compose_config(asked["mixed-seed2"])
    assert (config.pool.root, config.search.seed, config.search.evaluations) == ("pools/seed2", 1, 150)
    assert (config.strategy.trees, config.search.baselines) == (5, False)
    assert compose_config(asked["cma_es-seed1"]).search.baselines
    assert main(["cma_es", "--pools", "a/seed1", "b/seed1"]) == 2
    assert "folders of other names" in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(make_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(models((60, 60)), name="run")
    for arguments, message in [
        ([str(run)], "LABEL=RUN"),
        ([f"a={run}", f"a={run}", f"b={run}"], "there are runs: 2 of a, 1 of b"),
        ([f"a={make_run(models((60, 60)), name='short', held_out=False)}"], "has no winner scored on held-out items"),
    ]:
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_progress_counts_what_failed_and_falls_never(make_run: Any) -> None:
    run = make_run(models((60, 80)), name="run")
    np.testing.assert_array_equal(best_so_far(run), [np.nan, 0.7])  # the first of its two candidates failed


def test_items_of_races_are_counted(tmp_path: Path, make_run: Any) -> None:
    from evomerge.candidate import Candidate, Evaluation
    from evomerge.run.folder import RunFolder
    from evomerge.run.ledger import Ledger

    run = make_run(models((60, 60)), name="run")
    assert items_scored({"whole": [run]}) == ""
    with Ledger(RunFolder.create(tmp_path / "raced")) as ledger:
        for number, items in enumerate((10, 40)):
            ledger.log_asked(Candidate(number, None))
            race = {"items": float(items), "of": 200.0}
            ledger.log_told(Evaluation(number, "pruned", objectives={"score": 0.5}, race=race))
        ledger.log_asked(Candidate(1, None), "validation")
        ledger.log_told(Evaluation(1, "ok", "validation", objectives={"score": 0.4}))
    text = items_scored({"whole": [run], "raced": [tmp_path / "raced"]})
    assert text.endswith("finalists included: whole 200 (100.0%), raced 250 (125.0%).")

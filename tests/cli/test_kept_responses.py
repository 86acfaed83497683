"""What models answered: kept by a search, shown by the report, written by `evaluate --log-samples`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli.main import main
from evomerge.run.ledger import read_ledger


def kept(run: Path, split: str) -> set[int]:
    return {int(path.name.split("-")[1]) for path in (run / "items").glob(f"{split}-*-responses.json")}


def test_what_is_compared_is_kept(finished_run: Path) -> None:
    events = list(read_ledger(finished_run))
    baselines = {e["candidate"] for e in events if e["event"] == "asked" and e.get("name")}
    better = {e["candidate"] for e in events if e["event"] == "improved"}
    assert kept(finished_run, "search") == baselines | better
    assert kept(finished_run, "held_out") == {
        e["candidate"] for e in events if e["event"] == "told" and e["split"] == "held_out"
    }
    assert all("responses" not in event for event in events)


def test_all_are_kept_where_that_is_asked_for_and_change_nothing(
    finished_run: Path, quick_search: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(["search", *quick_search, "fitness.keep_responses=true", f"run_dir='{run}'"]) == 0
    told = [e for e in read_ledger(run) if e["event"] == "told"]
    assert kept(run, "search") == {e["candidate"] for e in told if e["split"] == "search"}
    scores = [(e["candidate"], e["objectives"]) for e in told]
    assert scores == [(e["candidate"], e["objectives"]) for e in read_ledger(finished_run) if e["event"] == "told"]


def test_evaluate_writes_the_files_of_lm_eval(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished_run), "--held-out", "--json", "--log-samples", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr()
    metrics: dict[str, Any] = json.loads(shown.out)["metrics"]
    assert "wrote 4 files into" in " ".join(shown.err.split())
    (file,) = (tmp_path / "new").rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    for name, value in metrics.items():
        task, _, metric = name.partition("/")
        assert results[task][f"{metric},none"] == value
    assert len(list((tmp_path / "new").rglob("samples_*.jsonl"))) == len({name.split("/")[0] for name in metrics})


def test_samples_into_a_file_are_refused_before_anything_is_scored(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    assert main(["evaluate", str(finished_run), "--log-samples", str(tmp_path / "taken" / "x")]) == 2
    assert "is no folder" in capsys.readouterr().err

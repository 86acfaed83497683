"""A search within bounds: a run like any other, which others can begin with and which goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.cli.main import main


def genes_of(run: Path) -> list[list[str]]:
    events = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return [event["genes"] for event in events if event["event"] == "phase"]


@pytest.mark.slow
def test_a_run_within_bounds_begins_with_a_wider_one_and_goes_on(
    quick_search: list[str], finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    bounds = "search_space.bounds={embed*: 0.0, layers*/math/weight: [0.2, 0.6]}"
    words = [*quick_search, bounds, "search.evaluations=6", f"run_dir='{run}'", f"search.warm_start=['{finished_run}']"]
    assert main(["search", *words]) == 0
    assert main(["resume", str(run), "search.evaluations=9"]) == 0
    (genes,) = genes_of(run)
    (wider,) = genes_of(finished_run)
    assert genes == [name for name in wider if not name.startswith("embed")]
    capsys.readouterr()
    assert main(["status", str(run)]) == 0
    assert "9" in capsys.readouterr().out
    assert main(["merge", str(run), str(tmp_path / "model")]) == 0

"""A search for a front of accuracy and closeness to the base, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.cli.main import main


def test_a_search_for_a_front_of_accuracy_and_closeness(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def search(name: str, *more: str) -> list[dict[str, Any]]:
        words = [
            "search", "experiment=demo_drift", f"pool.root='{quick_pool}'", f"run_dir='{tmp_path / name}'",
            "search.evaluations=6", "strategy.popsize=3", "fitness.parts.accuracy.limit=4", "held_out=null",
            "fitness.parts.closeness.texts.base_samples.write={texts: 6, tokens: 8}", "display=quiet", *more,
        ]  # fmt: skip
        assert main(words) == 0, capsys.readouterr().err
        rows = [json.loads(line) for line in (tmp_path / name / "ledger.jsonl").read_text().splitlines()]
        return [row for row in rows if row["event"] == "told"]

    told = search("first")
    assert all(set(row["objectives"]) == {"accuracy", "closeness"} for row in told)
    baselines = {row["candidate"]: row["objectives"]["closeness"] for row in told[:4]}
    assert max(baselines.values()) == 0.0, "the base is as near to itself as can be"
    assert sum(value == 0.0 for value in baselines.values()) == 1
    assert all(row["objectives"]["closeness"] < 0 for row in told[4:])
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "first"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["objectives"]
    assert any(np.isclose(row["objectives"]["closeness"], found["closeness"], atol=1e-6) for row in told)
    words = ["experiment=demo_drift", f"pool.root='{quick_pool}'", "fitness.parts.accuracy.limit=4"]
    assert main(["evaluate", str(quick_pool / "base"), *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objectives"]["closeness"] == 0.0

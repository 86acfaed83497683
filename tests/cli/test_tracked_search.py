"""A search with a tracker, from the command line: begun, gone on with, refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evomerge.cli.main import main
from evomerge.run.ledger import read_ledger

SEARCH = ["search", "experiment=m2n2_digits", "search.evaluations=20", "display=quiet"]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_a_tracker_follows_a_run_and_its_continuation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    assert main([*SEARCH, "trackers=[tensorboard]", f"run_dir='{run}'"]) == 0
    assert main(["resume", str(run), "search.evaluations=30", "--quiet"]) == 0
    objective = next(iter(next(iter(read_ledger(run)))["objectives"]))
    told = [e["objectives"][objective] for e in read_ledger(run) if e["event"] == "told" and e["split"] == "search"]
    assert len(told) == 30
    expected = [(step, float(np.float32(value))) for step, value in enumerate(told, 1)]
    assert scalars(run / "tensorboard", f"objective/{objective}") == expected
    assert "30/30 evaluated; best" in (run / "log.txt").read_text()


def test_wrong_settings_are_refused_before_anything_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for override, message in (
        ("trackers=[tensorbord]", "trackers.0 is 'tensorbord'; did you mean 'tensorboard'?"),
        ("trackers=[{name: wandb, projct: x}]", "trackers.0 has no key 'projct'; did you mean 'project'?"),
        ("display=loud", "display is 'loud'"),
    ):
        assert main([*SEARCH[:-1], override, f"run_dir='{tmp_path / 'run'}'"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"evomerge: error: {message}")
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "run").exists()

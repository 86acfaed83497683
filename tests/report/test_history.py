from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import report_runs
from optuna.trial import TrialState

from evomerge.candidate import Candidate, Evaluation
from evomerge.genomes.genome import Genome
from evomerge.report.history import read_history
from evomerge.report.study import study_of
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger
from evomerge.run.ledger_file import LedgerError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three candidates: scored, failed, and one still in flight; an interruption of an hour between sessions."""
    folder = RunFolder.create(tmp_path / "run")
    with Ledger(folder) as ledger:
        ledger.append("started", seed=0, evaluations=5, objectives={"acc": "maximize", "size": "minimize"})
        ledger.log_asked(Candidate(0, None, name="math"))
        ledger.log_told(Evaluation(0, "ok", objectives={"acc": 0.5, "size": 2.0}))
        ledger.append("phase", phase="search", number=1, phases=1, genes=["w", "n", "word", "on"])
        for identity, values in ((1, (0.25, 3, "a", True)), (2, (0.75, 5, "b", False)), (3, (0.5, 4, "a", True))):
            ledger.log_asked(Candidate(identity, None, Genome(values), parents=(1,) * (identity > 1)))
        items = {"task/acc": np.array([1.0, 0.0])}
        ledger.log_told(
            Evaluation(1, "ok", "search", {"acc": 0.6, "size": 3.0}, {"task/acc": 0.6}, items, {"model": 2.0})
        )
        ledger.append("improved", candidate=1, objective=0.6, recipe_hash="", front=1, hypervolume=0.1)
        ledger.log_told(Evaluation(2, "failed", error="it broke"))
        ledger.append("interrupted", reason="SIGTERM")
        ledger.append("resumed", events=9, evaluations=8, changes=[])
    return folder.path


def set_times(run: Path, seconds: list[float]) -> None:
    """Give the events these times, in seconds from the first."""
    from evomerge.run.ledger_file import encode

    ledger = run / "ledger.jsonl"
    lines = []
    for line, at in zip(ledger.read_text().splitlines(), seconds, strict=True):
        event = {key: value for key, value in json.loads(line).items() if key != "crc32"}
        lines.append(
            encode({**event, "time": f"2026-01-01T{int(at) // 3600:02}:{int(at) // 60 % 60:02}:{at % 60:06.3f}Z"})
        )
    ledger.write_bytes(b"".join(lines))


def test_what_a_history_says(run: Path) -> None:
    history = read_history(run)
    assert [(t.candidate, t.status, t.error) for t in history.trials] == [(1, "ok", ""), (2, "failed", "it broke")]
    assert list(history.in_flight) == [3]
    assert history.baselines["math"].objectives == {"acc": 0.5, "size": 2.0}
    assert [(o.name, o.direction) for o in history.objectives] == [("acc", "maximize"), ("size", "minimize")]
    assert (history.evaluations, history.sessions, history.stopped, history.interrupted) == (8, 2, None, None)
    assert (history.winner, history.improved[0]["at"]) == (1, 1)
    assert history.damage is None


def test_time_between_sessions_is_no_search(run: Path) -> None:
    # started, baseline asked and told, phase, three asked, told, improved, told, interrupted; an hour; resumed
    set_times(run, [0, 1, 2, 3, 4, 5, 6, 10, 10, 16, 17, 3617])
    history = read_history(run)
    assert history.seconds == pytest.approx(13)  # from the first candidate asked to the interruption
    assert [t.clock for t in history.trials] == pytest.approx([6, 12])
    assert history.improved[0]["clock"] == pytest.approx(6)


def test_a_damaged_ledger_is_read_up_to_the_damage(run: Path) -> None:
    ledger = run / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    lines[9] = lines[9].replace(b"it broke", b"it spoke")
    ledger.write_bytes(b"".join(lines))
    history = read_history(run)
    assert [t.candidate for t in history.trials] == [1]
    assert sorted(history.in_flight) == [2, 3]
    assert history.damage is not None
    assert "line 10 does not match its checksum" in history.damage


def test_an_incomplete_last_line_is_no_damage(run: Path) -> None:
    ledger = run / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-20])
    history = read_history(run)
    assert (history.damage, history.torn, history.sessions) == (None, True, 1)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="does not exist"):
        read_history(tmp_path / "none")


def test_a_study_has_all_that_the_ledger_has(run: Path) -> None:
    study = study_of(run)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["acc", "size"]
    first, second, third = study.trials
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING]
    assert first.params == {"w": 0.25, "n": 3, "word": "a", "on": True}
    assert first.values == [0.6, 3.0]
    assert first.user_attrs["metrics"] == {"task/acc": 0.6}
    assert first.user_attrs["seconds"] == {"model": 2.0}
    assert second.user_attrs["error"] == "it broke"
    assert (third.user_attrs["parents"], third.datetime_complete) == ([1], None)
    bounds = {name: vars(d) for name, d in first.distributions.items()}
    assert (bounds["w"]["low"], bounds["w"]["high"]) == (0.25, 0.75)
    assert (bounds["n"]["low"], bounds["n"]["high"]) == (3, 5)
    assert bounds["word"]["choices"] == ("a", "b")
    assert bounds["on"]["choices"] == (False, True)


def test_a_study_of_some_keeps_the_best(tmp_path: Path) -> None:
    run = report_runs.parameter_run(tmp_path / "run", 40)
    winner = read_history(run).winner
    study = study_of(run, most=10)
    assert 10 <= len(study.trials) <= 11
    assert winner in [trial.user_attrs["candidate"] for trial in study.trials]
    assert study.best_trial.user_attrs["candidate"] == winner


def test_a_lineage_has_the_values_of_its_last_step(tmp_path: Path) -> None:
    study = study_of(report_runs.lineage_run(tmp_path / "run", 12))
    seed, *_, child = study.trials
    assert seed.params == {}
    assert set(child.params) == {"mix", "split"}
    assert all(0 <= value <= 1 and not math.isnan(value) for value in child.params.values())

"""Searches that a rule ends, from the command line: what is said, what goes on, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from evomerge.cli.main import main
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import canonical_events, read_ledger
from evomerge.run.record import Record

DIGITS = ["experiment=m2n2_digits", "search.evaluations=120", "display=quiet"]


def last(run: Path) -> dict:
    return list(read_ledger(RunFolder(run)))[-1]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())


def test_patience_ends_a_search_and_more_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, once = tmp_path / "run", tmp_path / "once"
    assert main(["search", *DIGITS, "search.patience=10", f"run_dir='{run}'"]) == 0
    stopped = last(run)
    assert (stopped["rule"], stopped["limit"]) == ("patience", 10)
    assert stopped["evaluations"] < 120
    said(capsys)
    assert main(["status", str(run)]) == 0
    assert "ended, search.patience=10" in said(capsys)
    assert main(["status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rules"]["patience"] == 10
    before = (run / "ledger.jsonl").read_bytes()
    assert main(["resume", str(run)]) == 0
    assert f"{run} was ended by search.patience; `evomerge resume {run} search.patience=N` goes on" in said(capsys)
    assert main(["resume", str(run), "search.evaluations=200", "search.patience=10"]) == 0
    assert (run / "ledger.jsonl").read_bytes() == before
    assert main(["resume", str(run), "search.patience=25"]) == 0
    assert main(["search", *DIGITS, "search.patience=25", f"run_dir='{once}'"]) == 0
    ends = [(event["rule"], event["limit"], event["evaluations"]) for event in (last(run), last(once))]
    assert ends[0] == ends[1]
    assert yaml.safe_load((run / "config.yaml").read_text())["search"]["patience"] == 25  # also for the next session
    told = [
        [
            event["objectives"]
            for event in canonical_events(folder)
            if event["event"] == "told" and event["split"] == "search"
        ]
        for folder in (run, once)
    ]
    assert told[0] == told[1]


def test_a_target_or_hours_end_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "target"
    assert main(["search", *DIGITS, "search.target=0.0", f"run_dir='{run}'"]) == 0
    assert last(run)["evaluations"] <= 20  # what was asked before the first was told
    assert main(["report", str(run)]) == 0
    assert "The search ended by search.target: " in (run / "report.html").read_text()
    said(capsys)
    assert main(["resume", str(run)]) == 0
    assert "has reached search.target" in said(capsys)
    run = tmp_path / "hours"
    assert main(["search", *DIGITS, "search.hours=1e-7", f"run_dir='{run}'"]) == 0
    assert last(run)["rule"] == "hours"
    assert main(["resume", str(run)]) == 0
    assert f"`evomerge resume {run} search.hours=N` goes on to N hours in all" in said(capsys)
    assert main(["resume", str(run), "search.hours=5", "search.evaluations=30"]) == 0
    assert last(run)["reason"] == "budget"
    assert Record(RunFolder(run)).clock.seconds > 3600e-7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.hours=0", "search.hours is 0"),
        ("search.hours=long", "search.hours is 'long'"),
        ("search.patience=0", "search.patience is 0; at least 1"),
        ("search.patience=1.5", "search.patience is 1.5"),
        ("search.target=high", "search.target is 'high'; a number, or a mapping"),
        ("search.target={acuracy: 0.5}", "search.target names 'acuracy'"),
        ("search.patiense=5", "patience"),
        ("strategy.restarts=jpop", "strategy"),
    ],
)
def test_mistakes_are_named(override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", *DIGITS, override, f"run_dir='{tmp_path / 'run'}'"]) == 2
    assert message in said(capsys)
    assert not (tmp_path / "run").exists()

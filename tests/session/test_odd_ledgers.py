"""What a ledger of a stranger may hold is refused in one line, or read as nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.report.optuna_storage import journal_of
from evomerge.report.status import read_status
from evomerge.run.folder import RunFolder
from evomerge.run.ledger_file import LedgerError
from evomerge.session.resume import open_run
from scripts.fuzz_parsers import PARSERS, _run_folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return _run_folder(tmp_path)


def change(run: RunFolder, kind: str, **fields: Any) -> None:
    """Give the events of a kind other fields, with checksums that fit."""
    parser = PARSERS["ledger"]
    events = [event | (fields if event["event"] == kind else {}) for event in parser.load(run.ledger.read_bytes())]
    run.ledger.write_bytes(parser.dump(events))


@pytest.mark.parametrize("evaluations", ["4", "x", None, -1, 4.0, True, [], {"a": 1}])
def test_a_budget_that_is_no_number(run: RunFolder, evaluations: Any) -> None:
    change(run, "stopped", evaluations=evaluations)
    _, resumed = open_run(run.path, [])
    with pytest.raises(LedgerError, match=r"has evaluations .*; a number of evaluations") as caught:
        assert resumed.budget
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1970-01-01T00:00:00"])
def test_a_time_at_the_ends_of_the_calendar_is_exported(run: RunFolder, time: str) -> None:
    change(run, "told", time=time)
    change(run, "asked", time=time)
    assert json.loads(journal_of(run).splitlines()[0])


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", 1e308, "3", None])
def test_numbers_that_nobody_can_count_to(run: RunFolder, number: Any) -> None:
    change(run, "told", merge={"hits": number, "bytes": number, "computed": number, "kept": number})
    status = read_status(run.path)
    assert type(status.cache.bytes) is int
    assert all(type(count) is int for count in status.cache.slices.values())


@pytest.mark.parametrize("number", [-3, 10**12, True, "2"])
def test_candidates_in_flight_that_nobody_can_have(run: RunFolder, number: Any) -> None:
    from evomerge.run.record import Record
    from evomerge.session.replay import ContinuedLedger

    change(run, "phase", in_flight=number)
    ledger = ContinuedLedger(run, Record(run), resumed={})
    try:
        assert ledger.in_flight(0, 7) == 7
    finally:
        ledger.close()

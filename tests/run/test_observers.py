"""Observers see what the ledger holds, and cannot hurt it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from evomerge.candidate import Candidate, Evaluation
from evomerge.genomes.genome import Genome
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger, read_ledger
from evomerge.run.ledger_file import decode, encode
from evomerge.run.observers import Observers


def write_three(folder: RunFolder, *observers: Any) -> None:
    with Ledger(folder, observe=Observers(observers)) as ledger:
        ledger.append("started", seed=0)
        ledger.log_asked(Candidate(0, None, Genome((0.5,))))
        ledger.log_told(Evaluation(0, "failed", error="it is NaN", traceback="Traceback ..."))


def test_they_see_what_the_ledger_holds(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    folder = RunFolder.create(tmp_path / "run")
    write_three(folder, seen.append)
    plain = [decode(encode(event), "observed") for event in seen]
    read = [{k: v for k, v in event.items() if k != "crc32"} for event in read_ledger(folder)]
    assert [{k: v for k, v in event.items() if k != "crc32"} for event in plain] == read
    assert [event["event"] for event in read] == ["started", "asked", "told"]
    assert "traceback" not in read[-1]


def test_one_that_raises_is_told_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls, seen = [], []

    def broken(event: dict[str, Any]) -> None:
        calls.append(event["event"])
        raise ZeroDivisionError("on purpose")

    folder = RunFolder.create(tmp_path / "run")
    with caplog.at_level(logging.ERROR):
        write_three(folder, broken, seen.append)
    assert calls == ["started"]
    assert len(seen) == 3 == len(list(read_ledger(folder)))
    (record,) = caplog.records
    assert "told no more" in record.message
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError

"""How sessions end, and what the next one finds: polite stops, checkpoints that are damaged, files that are lost."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from killed_runs import Plan, Workers, content, session

from evomerge.candidate import Evaluation, Split
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger
from evomerge.run.ledger_file import LedgerError

pytestmark = pytest.mark.slow

PLAN = Plan("cma_es", checkpoint=7)


class Counting(Workers):
    """One worker that counts what it evaluates."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__(1, 0.0, False)
        self.evaluated: list[tuple[int, Split]] = []
        self._noise = noise

    def collect(self) -> Evaluation:
        found = super().collect()
        self.evaluated.append((found.candidate, found.split))
        return Evaluation(**{**vars(found), "objectives": {k: v + self._noise for k, v in found.objectives.items()}})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    session(path, PLAN)
    return path


def stopped_after(path: Path, evaluations: int) -> None:
    """Begin a run and stop it politely."""
    left = [evaluations]

    def stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    with pytest.raises(KeyboardInterrupt):
        session(path, PLAN, stop)


def resumed(path: Path) -> dict:
    return [event for event in read_ledger(RunFolder(path)) if event["event"] == "resumed"][-1]


def test_a_session_that_is_stopped_leaves_its_state_behind(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    stopped_after(path, 30)
    lines = len(list(read_ledger(RunFolder(path))))
    assert max(int(entry.name) for entry in (path / "checkpoint").iterdir()) == lines
    workers = Counting()
    session(path, PLAN, evaluator=workers)
    assert resumed(path)["checkpoint"] == lines
    assert content(path) == content(whole)
    assert len(workers.evaluated) < 60


def test_a_damaged_checkpoint_costs_time_only(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run"
    stopped_after(path, 40)
    taken = sorted((path / "checkpoint").iterdir())
    (taken[-1] / "state.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        session(path, PLAN)
    assert [str(taken[-1]) in record.message for record in caplog.records] == [True]
    assert resumed(path)["checkpoint"] == int(taken[-2].name)
    assert content(path) == content(whole)


def test_a_checkpoint_that_a_strategy_refuses_is_left_out(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = tmp_path / "run", tmp_path / "other"
    stopped_after(path, 30)
    session(other, Plan("ga"))
    shutil.rmtree(path / "checkpoint")
    shutil.copytree(other / "checkpoint", path / "checkpoint")
    ledger = (path / "ledger.jsonl").read_bytes()
    for entry in (path / "checkpoint").iterdir():  # it claims to be of this ledger
        manifest = json.loads((entry / "manifest.json").read_text())
        manifest["ledger"] = {"lines": 9, "bytes": len(ledger), "sha256": hashlib.sha256(ledger).hexdigest()}
        (entry / "manifest.json").write_text(json.dumps(manifest))
    with caplog.at_level(logging.WARNING):
        session(path, PLAN)
    assert caplog.records
    assert all("is left out" in record.message for record in caplog.records)
    assert "checkpoint" not in resumed(path)
    assert content(path) == content(whole)


@pytest.mark.parametrize("harm", ["missing", "empty"])
def test_items_that_a_power_failure_took_are_made_again(
    whole: Path, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The event reached the disk, the file that it names did not."""
    path = tmp_path / "run"
    stopped_after(path, 20)
    shutil.rmtree(path / "checkpoint")
    told = [event["candidate"] for event in read_ledger(RunFolder(path)) if event["event"] == "told" and event["items"]]
    lost = RunFolder(path).items_file(told[-1], "search")
    before = lost.read_bytes()
    lost.unlink() if harm == "missing" else lost.write_bytes(b"")
    workers = Counting()
    with caplog.at_level(logging.WARNING):
        session(path, PLAN, evaluator=workers)
    assert f"candidate {told[-1]} is evaluated again" in caplog.records[0].message
    assert workers.evaluated[0] == (told[-1], "search")
    assert lost.read_bytes() == before
    assert content(path) == content(whole)


def test_items_that_come_out_differently_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "run"
    stopped_after(path, 20)
    shutil.rmtree(path / "checkpoint")
    (path / "items" / "search-9.safetensors").unlink()
    before = (path / "ledger.jsonl").read_bytes()
    with pytest.raises(LedgerError, match="candidate 9 does not score again what it did"):
        session(path, PLAN, evaluator=Counting(noise=1e-12))
    assert (path / "ledger.jsonl").read_bytes() == before


def test_clocks_that_jump_change_nothing(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(2026, 3, 29, 2, tzinfo=UTC) + timedelta(days=float(rng.normal() * 400))

    monkeypatch.setattr("evomerge.run.ledger.datetime", Jumping)
    path = tmp_path / "run"
    stopped_after(path, 25)
    session(path, PLAN)
    assert content(path) == content(whole)
    times = [event["time"] for event in read_ledger(RunFolder(path))]
    assert times != sorted(times)

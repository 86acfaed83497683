import json
import logging
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.run import checkpoint as module
from evomerge.run.checkpoint import Checkpoint, Checkpoints, Position, read_checkpoints
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger

STATE = {"rng": {"state": 2**127 - 1}, "scores": np.array([[0.5, np.nan]]), "best": float("-inf"), "names": ["a"]}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run whose ledger has six events, with checkpoints after the second, fourth and sixth."""
    made = RunFolder.create(tmp_path / "run")
    with Ledger(made) as ledger, Checkpoints(made, every=0, keep=3) as checkpoints:
        for number in range(1, 7):
            ledger.append("asked", candidate=number, split="search")
            if number % 2 == 0:
                checkpoints.put(Position(len(ledger), ledger.nbytes), {**STATE, "number": number}, number)
    return made


def found(folder: RunFolder) -> list[int]:
    return [entry.state["number"] for entry in read_checkpoints(folder) if isinstance(entry, Checkpoint)]


def reasons(folder: RunFolder) -> list[str]:
    return [str(entry) for entry in read_checkpoints(folder) if not isinstance(entry, Checkpoint)]


def test_the_latest_comes_first_and_holds_what_was_put(folder: RunFolder) -> None:
    assert found(folder) == [6, 4, 2]
    latest = next(iter(read_checkpoints(folder)))
    assert isinstance(latest, Checkpoint)
    assert latest.position == Position(6, folder.ledger.stat().st_size)
    assert latest.state["rng"] == STATE["rng"]
    assert latest.state["best"] == float("-inf")
    assert np.array_equal(latest.state["scores"], STATE["scores"], equal_nan=True)


def newest(folder: RunFolder) -> Path:
    return max(folder.checkpoint.iterdir())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def claim(path: Path, nbytes: float) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["ledger"]["bytes"] = nbytes
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: flip(path / "state.json"), "state.json does not match its checksum"),
        (lambda path: flip(path / "arrays.safetensors"), "arrays.safetensors does not match its checksum"),
        (lambda path: (path / "arrays.safetensors").unlink(), "No such file"),
        (lambda path: (path / "manifest.json").unlink(), "No such file"),
        (lambda path: (path / "manifest.json").write_text("[]"), "list indices"),
        (lambda path: (path / "manifest.json").write_text("[" * 100_000), "it has 100,000 bytes, more than 65,536"),
        (lambda path: (path / "state.json").write_text("{}"), "state.json has 2 bytes"),
        (lambda path: (path / "manifest.json").write_text('{"evomerge_checkpoint": 9}'), "its format is 9"),
        (lambda path: claim(path, nbytes=-7), "its place in the ledger is -7"),
        (lambda path: claim(path, nbytes=float("inf")), "infinity"),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_is_taken(folder: RunFolder, harm, reason: str) -> None:
    harm(newest(folder))
    assert found(folder) == [4, 2]
    assert reason in reasons(folder)[0]
    assert str(newest(folder)) in reasons(folder)[0]


def test_one_that_is_ahead_of_the_ledger_or_of_another_is_left_out(folder: RunFolder) -> None:
    lines = folder.ledger.read_bytes().splitlines(keepends=True)
    folder.ledger.write_bytes(b"".join(lines[:5]))  # a power failure took the last
    assert found(folder) == [4, 2]
    assert "later than the ledger ends" in reasons(folder)[0]
    folder.ledger.write_bytes(b"".join([*lines[:2], lines[3], lines[2], *lines[4:]]))
    assert found(folder) == [2]
    assert all("of another ledger" in reason for reason in reasons(folder))


def test_as_many_as_wanted_are_kept_and_what_killed_sessions_left_goes(folder: RunFolder) -> None:
    (folder.checkpoint / ".000000005.77.tmp").mkdir()
    shutil.copytree(newest(folder), folder.checkpoint / "000000099")  # of a ledger that was cut since
    with Ledger(folder) as ledger, Checkpoints(folder, keep=2) as checkpoints:
        ledger.append("asked", candidate=7, split="search")
        checkpoints.put(Position(len(ledger), ledger.nbytes), {"number": 7}, 7)
    assert sorted(entry.name for entry in folder.checkpoint.iterdir()) == ["000000006", "000000007"]
    assert found(folder) == [7, 6]


def test_nothing_outside_the_run_is_read(folder: RunFolder, tmp_path: Path) -> None:
    shutil.move(newest(folder), tmp_path / "elsewhere")
    (folder.checkpoint / "000000006").symlink_to(tmp_path / "elsewhere")
    assert found(folder) == [4, 2]


def test_a_state_that_cannot_be_written_is_a_warning(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    before = found(folder)
    with caplog.at_level(logging.WARNING), Checkpoints(folder) as checkpoints:
        checkpoints.put(Position(1, 10), {"a": {1: 2}}, 1)
        checkpoints.put(Position(1, 10), {"a": object()}, 1)
    assert [record.message[:25] for record in caplog.records] == ["no checkpoint was written"] * 2
    assert found(folder) == before
    assert not list(folder.checkpoint.glob(".*"))


def test_writing_does_not_hold_the_search_up(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Checkpoints._write

    def slow(self: Checkpoints, *arguments: object) -> None:
        time.sleep(0.3)
        write(self, *arguments)

    monkeypatch.setattr(Checkpoints, "_write", slow)
    with Checkpoints(folder, every=0) as checkpoints:
        start = time.monotonic()
        checkpoints.put(Position(6, folder.ledger.stat().st_size), {"number": 60}, 6)
        assert time.monotonic() - start < 0.2
        assert not checkpoints.due(1000)  # while one is being written
    assert found(folder)[0] == 60


def test_intervals_are_of_a_clock_that_nobody_sets(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "time", lambda: pytest.fail("the wall clock was read"))
    by_time, by_number = Checkpoints(folder, every=10), Checkpoints(folder, every=None, evaluations=5)
    assert not by_time.due(1000)
    now[0] += 9
    assert not by_time.due(1000)
    now[0] += 1
    assert by_time.due(0)
    assert [by_number.due(told) for told in (4, 5)] == [False, True]
    position = Position(6, folder.ledger.stat().st_size)
    by_time.put(position, {}, 0, seconds=0.5)  # half a second: the next one not before 25 have passed
    by_time.close()
    due = []
    for _ in range(3):
        now[0] += 10
        due.append(by_time.due(0))
    assert due == [False, False, True]
    assert not Checkpoints(folder, every=0, keep=0).due(1000)


@pytest.mark.parametrize("wrong", [{"every": -1}, {"evaluations": 0}, {"keep": -1}])
def test_settings_out_of_range_are_refused(folder: RunFolder, wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"search.checkpoint.{next(iter(wrong))}"):
        Checkpoints(folder, **wrong)


def test_the_manifest_says_what_it_is(folder: RunFolder) -> None:
    manifest = json.loads((newest(folder) / "manifest.json").read_text())
    assert manifest["evomerge_checkpoint"] == 1
    assert set(manifest["files"]) == {"state.json", "arrays.safetensors"}
    assert manifest["ledger"]["lines"] == 6

"""``evomerge status`` on a real run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.cli.main import main
from evomerge.report.summary import summarize


def test_a_finished_run(
    finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["status", str(finished_run), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["told"], status["evaluations"]) == ("ended", 12, 12)
    assert status["counts"] == summarize(finished_run).counts
    assert len(status["baselines"]) == 4
    assert status["stages"].keys() == {"merge", "model", "other"}
    cache = status["cache"]
    evaluations = 12 + 2 * 4 + 1  # baselines are scored on both splits, the winner is on the held-out items
    assert sum(cache["slices"].values()) % evaluations == 0
    assert cache["slices"]["computed"] > 0
    assert 0 < cache["byte_hits"] < 1
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["status", str(finished_run)]) == 0
    text = capsys.readouterr().out
    assert "ended, budget" in text
    assert "12 of 12 " in text
    assert " 100 %" in text


def test_a_wrong_path_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith(f"evomerge: error: run folder {tmp_path / 'nowhere'} does not exist")
    assert main(["status"]) == 2
    assert "RUN" in capsys.readouterr().err


def test_a_terminal_without_characters_for_frames_gets_others(finished_run: Path) -> None:
    command = [sys.executable, "-m", "evomerge", "status", str(finished_run)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    assert "state" in found.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_streams_may_be_closed(finished_run: Path, closed: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m evomerge export {shlex.quote(str(finished_run))} {closed}"
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert ("slices" in found.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    folder, python = shlex.quote(str(gone)), shlex.quote(sys.executable)
    command = f"cd {folder} && rmdir {folder} && {python} -m evomerge methods"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(
        ["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (found.returncode, found.stderr) == (
        2,
        "evomerge: error: the current folder is gone; a folder that is there; change to one and try again\n",
    )

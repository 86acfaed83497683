"""What a search shows while it runs: on a real terminal, in a pipe, and when asked for nothing."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from evomerge.candidate import Candidate, Evaluation
from evomerge.cli.main import main
from evomerge.cli.search import quietened
from evomerge.genomes.genome import Genome
from evomerge.protocols import Work
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger
from evomerge.run.log_file import RunLog
from evomerge.run.observers import Observers
from evomerge.session import progress as progress_module
from evomerge.session.progress import Progress

SEARCH = """
import logging, sys, time
from pathlib import Path
from evomerge.candidate import Candidate, Evaluation
from evomerge.session.progress import Progress
from evomerge.genomes.genome import Genome
from evomerge.run.ledger import Ledger
from evomerge.run.folder import RunFolder
from evomerge.run.observers import Observers

run, count = Path(sys.argv[1]), int(sys.argv[2])
with Progress(str(run), count, object(), "auto") as progress:
    with Ledger(RunFolder.create(run), sync="interval", observe=Observers([progress])) as ledger:
        ledger.append("started", evaluations=count, objectives={"score": "maximize"})
        for candidate in range(count):
            ledger.log_asked(Candidate(candidate, None, Genome((0.5,))))
            time.sleep(0.02)
            ledger.log_told(Evaluation(candidate, "ok", objectives={"score": candidate / count}))
            ledger.append("improved", candidate=candidate, objective=candidate / count)
            if candidate == 2:
                print("noise of a library")
                logging.getLogger("somebody").warning("a warning of a library")
                logging.getLogger("evomerge.somewhere").warning("a warning of ours")
        ledger.append("stopped", reason="budget")
print("afterwards")
"""


def in_terminal(
    run: Path, count: int, react: Callable[[int, str], None] = lambda terminal, seen: None
) -> tuple[int, str]:
    """Exit status and everything that a terminal of 80 columns and 30 rows was sent."""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells ignore it in what they start in the background
        os.environ.update(TERM="xterm", COLUMNS="80", LINES="30", PYTHONPATH=os.getcwd())
        os.execv(sys.executable, [sys.executable, "-c", SEARCH, str(run), str(count)])
    seen = ""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ready, _, _ = select.select([terminal], [], [], 1)
        if ready:
            try:
                data = os.read(terminal, 65536)
            except OSError:
                break
            seen += data.decode(errors="replace")
            react(terminal, seen)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen


@pytest.fixture(autouse=True)
def no_handlers_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that other tests have imported may have left handlers that write to streams of those tests."""
    root = logging.getLogger()
    own = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]
    monkeypatch.setattr(root, "handlers", own)


def test_a_terminal_gets_a_panel(tmp_path: Path) -> None:
    status, seen = in_terminal(tmp_path / "run", 40)
    assert status == 0, seen
    assert "40 of 40" in seen
    assert "ended, budget" in seen
    assert len(re.findall("searching, ", seen)) >= 1
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")  # the cursor is shown again
    assert "afterwards" in seen[seen.rindex("\x1b[?25h") :]
    assert "a warning of ours" in seen
    assert "noise" not in seen
    assert "a warning of a library" not in seen
    log = (tmp_path / "run" / "log.txt").read_text()
    for line in (
        "noise of a library",
        "somebody: a warning of a library",
        "a warning of ours",
        "40/40 evaluated; best",
    ):
        assert line in log
    assert not (tmp_path / "run" / "workers.json").exists()


def test_control_c_gives_the_terminal_back(tmp_path: Path) -> None:
    pressed = []

    def press(terminal: int, seen: str) -> None:
        if "searching" in seen and not pressed:
            pressed.append(True)
            os.write(terminal, b"\x03")

    status, seen = in_terminal(tmp_path / "run", 3000, press)
    assert pressed
    assert status == -signal.SIGINT, seen
    assert "ended, interrupted" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")


def test_a_pipe_gets_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SEARCH, str(tmp_path / "run"), "30"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0] == f"run folder: {tmp_path / 'run'}"
    assert lines[1] == "noise of a library"
    assert re.fullmatch(r"  30/30 evaluated; best score 0\.9667; [\d,]+ an hour", lines[2])
    assert lines[3:] == ["afterwards"]
    assert "a warning of ours" in done.stderr
    assert "\x1b" not in done.stdout


class Evaluator:
    """One whose worker does something."""

    def work(self) -> Sequence[Work]:
        return (Work("worker 1", 3, "search", 12.5), Work("worker 2"))


def feed(folder: RunFolder, observer: Any, count: int = 5) -> None:
    with Ledger(folder, observe=Observers([observer])) as ledger:
        ledger.append("started", evaluations=count, objectives={"score": "maximize"})
        ledger.log_asked(Candidate(0, None, name="math"))
        ledger.log_told(Evaluation(0, "ok", objectives={"score": 0.25}))
        for candidate in range(1, count + 1):
            ledger.log_asked(Candidate(candidate, None, Genome((0.5,))))
            ledger.log_told(Evaluation(candidate, "failed", error="it is NaN"))


def test_quiet_prints_nothing_and_still_writes_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "run")
    with Progress(str(folder.path), 5, Evaluator(), "quiet") as progress:  # type: ignore[arg-type]
        feed(RunFolder.create(folder.path), progress)
    assert capsys.readouterr() == ("", "")
    assert "5/5 evaluated; 5 failed (it is NaN)" in folder.log.read_text()


def test_quiet_is_a_key() -> None:
    assert quietened(["a=1", "--quiet", "-q"]) == ["a=1", "display=quiet", "display=quiet"]


def test_baselines_are_lines_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(str(tmp_path / "run"), 5, Evaluator(), "plain") as progress:  # type: ignore[arg-type]
        feed(RunFolder.create(tmp_path / "run"), progress)
    assert "  baseline math: score 0.2500\n" in capsys.readouterr().out


def test_workers_are_noted_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_WORKERS", 0.0)
    monkeypatch.setattr(progress_module, "_FRAME", 0.01)
    folder = RunFolder(tmp_path / "run")
    with Progress(str(folder.path), 5, Evaluator(), "quiet") as progress:  # type: ignore[arg-type]
        feed(RunFolder.create(folder.path), progress)
        deadline = time.monotonic() + 20
        while not folder.workers.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        written = json.loads(folder.workers.read_text())
    assert Work(**written[0]) == Work("worker 1", 3, "search", 12.5)
    assert written[1]["candidate"] is None
    assert not folder.workers.exists()


def test_noting_is_a_stage_with_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    class Notes(Evaluator):
        def work(self) -> Sequence[Work]:
            return (Work("worker 1", 3, "search", 12.5, "noting", 34, 210), Work("worker 2"))

    monkeypatch.setattr(progress_module, "_FRAME", 0.01)
    monkeypatch.setattr(progress_module, "_LINE", 0.02)
    with Progress(str(tmp_path / "run"), 5, Notes(), "plain") as progress:  # type: ignore[arg-type]
        time.sleep(0.2)
        assert "noting statistics of the sources, 34 of 210 slices, " in progress._message()
    assert "  noting statistics of the sources, 34 of 210 slices\n" in capsys.readouterr().out


def test_a_display_that_fails_does_not_hurt_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(progress_module, "_FRAME", 0.01)
    monkeypatch.setattr(progress_module, "status_of", broken)
    monkeypatch.setattr(Evaluator, "work", broken)
    folder = RunFolder(tmp_path / "run")
    with Progress(str(folder.path), 5, Evaluator(), "plain") as progress:  # type: ignore[arg-type]
        feed(RunFolder.create(folder.path), progress)
        time.sleep(0.1)
    text = folder.log.read_text()
    assert text.count("the progress could not be shown") == 1
    assert "ZeroDivisionError: on purpose" in text


def test_slow_frames_are_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes no more than its part of the time, however long a frame takes."""
    monkeypatch.setattr(progress_module, "_FRAME", 0.001)
    frames: list[float] = []

    def slow(self: Progress) -> None:
        frames.append(time.monotonic())
        end = time.thread_time() + 0.002
        while time.thread_time() < end:
            pass

    monkeypatch.setattr(Progress, "_step", slow)
    with Progress(str(tmp_path / "run"), 5, Evaluator(), "quiet"):  # type: ignore[arg-type]
        time.sleep(1.0)
    assert len(frames) <= 3  # 0.002 s times 300 from one to the next


def test_a_run_that_goes_on_shows_what_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.create(tmp_path / "run")
    feed(folder, lambda event: None)
    with Progress(str(folder.path), 9, Evaluator(), "plain", again=True):  # type: ignore[arg-type]
        pass
    assert "  5/9 evaluated; 5 failed" in capsys.readouterr().out


def test_status_from_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run of another process: while it runs, killed, and damaged. Nothing in its folder changes."""
    run = tmp_path / "run"
    search = subprocess.Popen([sys.executable, "-c", SEARCH, str(run), "100000"], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (run / "ledger.jsonl").exists() or (run / "ledger.jsonl").read_bytes().count(b'"told"') < 5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        status = status_of(run, capsys)
        assert status["state"] == "running"
        assert f"process {search.pid}" in status["detail"]
        assert status["told"] >= 5
        assert status["in_flight"] <= 1
        assert status["left"] > 0
    finally:
        search.kill()
        search.wait()
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    status = status_of(run, capsys)
    assert (status["state"], status["detail"]) == ("dead", "no process writes it and it has not ended")
    assert status["best"] == pytest.approx((status["told"] - 1) / 100000)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    lines = files[run / "ledger.jsonl"].splitlines(keepends=True)
    lines[7] = lines[7].replace(b'"candidate":2', b'"candidate":3')
    (run / "ledger.jsonl").write_bytes(b"".join(lines))
    assert main(["status", str(run)]) == 2
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "state damaged, " in text
    assert "line 8 does not match its checksum" in text
    assert "2 of 100000" in text


def status_of(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["status", str(run), "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


class TestLog:
    def test_nothing_is_lost_before_the_folder_is_there(self, tmp_path: Path) -> None:
        told: list[str] = []
        with RunLog(tmp_path / "log.txt", told.append) as log:
            logging.getLogger("evomerge.models").warning("early, with %s", "arguments")
            warnings.warn("of Python", UserWarning, stacklevel=1)
            assert not (tmp_path / "log.txt").exists()
            log.open_file()
            logging.getLogger("evomerge.models").info("late")
            logging.getLogger("transformers").info("chatter")
        text = (tmp_path / "log.txt").read_text()
        assert text.index("WARNING evomerge.models: early, with arguments") < text.index("INFO evomerge.models: late")
        assert "UserWarning: of Python" in text
        assert "chatter" not in text
        assert told == ["warning: early, with arguments"]

    def test_everything_is_as_it_was_afterwards(self, tmp_path: Path) -> None:
        root = logging.getLogger()
        handler = logging.StreamHandler(sys.stderr)
        root.addHandler(handler)
        try:
            before = list(root.handlers), logging.getLogger("evomerge").level, warnings.showwarning, sys.stderr
            with RunLog(tmp_path / "log.txt", print, streams=True):
                assert handler not in root.handlers
            after = list(root.handlers), logging.getLogger("evomerge").level, warnings.showwarning, sys.stderr
            assert set(before[0]) == set(after[0])
            assert before[1:] == after[1:]
        finally:
            root.removeHandler(handler)

    def test_a_full_disk_is_not_an_error(self, tmp_path: Path) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("there is no /dev/full")
        with RunLog(Path("/dev/full"), lambda line: None) as log:
            log.open_file()
            logging.getLogger("evomerge").warning("lost")

    def test_threads_may_log(self, tmp_path: Path) -> None:
        with RunLog(tmp_path / "log.txt", lambda line: None) as log:
            log.open_file()
            threads = [
                threading.Thread(target=lambda n=n: logging.getLogger("evomerge").info("line %d", n)) for n in range(20)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        lines = (tmp_path / "log.txt").read_text().splitlines()
        assert sorted(int(line.rsplit(" ", 1)[1]) for line in lines) == list(range(20))

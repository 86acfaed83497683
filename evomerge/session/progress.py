"""What is shown while a search runs: a panel on a terminal, lines elsewhere, nothing when asked for.

`Progress` only adds up the events that it is told of. A thread of its own draws, at most four times a second and never
for more than a 300th of the time: a search with candidates of a millisecond does not wait for its picture.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType

from rich.live import Live

from evomerge.protocols import Evaluator, Work
from evomerge.report.formatting import duration
from evomerge.report.plain_console import PlainConsole, console, errors
from evomerge.report.progress import RunProgress
from evomerge.report.status import RunStatus, State, status_of
from evomerge.report.status_view import StatusPanel, progress_line
from evomerge.report.worker_lines import noting
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger
from evomerge.run.ledger_file import Event
from evomerge.run.log_file import RunLog
from evomerge.session.signals import wanted
from evomerge.utils.files import write_text_atomic
from evomerge.utils.installation import VERSION

_LOG = logging.getLogger(__name__)
_FRAME = 0.25  # seconds between two frames at least
_SHARE = 300  # and this many times what drawing one took
_LINE = 10.0  # seconds between two lines of text at least
_RARER = 0.01  # and this part of the time so far
_WORKERS = 2.0  # seconds between two notes of what workers do
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Progress:
    """Shows a search while it is open, keeps its log and a note of what its workers do; an `observers.Observer`.

    Args:
        run_dir: the run folder, which need not be there yet.
        evaluations: the budget.
        evaluator: asked what its workers do, when it can say.
        display: ``auto`` (``live`` on a terminal, ``plain`` elsewhere), ``live``, ``plain`` or ``quiet``.
        again: whether the run goes on, so that what is in its ledger counts.
    """

    def __init__(
        self,
        run_dir: str,
        evaluations: int,
        evaluator: Evaluator,
        display: str = "auto",
        again: bool = False,
    ) -> None:
        self._folder, self._evaluations = RunFolder(Path(run_dir)), evaluations
        self._work: Callable[[], Sequence[Work]] = getattr(evaluator, "work", tuple)
        able = console.is_terminal and not console.is_dumb_terminal
        self._display = ("live" if able else "plain") if display == "auto" else display
        self._again = again
        self._lock = threading.Lock()
        self._progress = RunProgress()
        self._told: deque[str] = deque()
        self._log = RunLog(self._folder.log, self._told.append, streams=self._display == "live")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="evomerge-progress", daemon=True)
        self._began = self._lined = self._noted = time.monotonic()
        self._seen = -1
        self._baselines: set[str] = set()
        self._work_before: list[Work] | None = None
        self._broken = self._logged = False
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self._display != "quiet":
            console.print(f"run folder: {self._folder.path}", soft_wrap=True)
        if self._again:
            for event in read_ledger(self._folder, on_torn=lambda torn: None):
                self._progress.update(event)
            self._baselines.update(self._progress.baselines)
        if self._display == "live":
            screen = PlainConsole(file=sys.stdout)
            self._live = Live(console=screen, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._log.__enter__()
        _LOG.info("evomerge %s: %s", VERSION, shlex.join(sys.argv))
        try:
            if self._live is not None:
                self._live.start()
            self._thread.start()
        except BaseException:
            self._log.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt):
            _LOG.info("the search ended", exc_info=error)
        self._over.set()
        self._thread.join(timeout=5)
        try:
            self._last(error)
        finally:
            if self._live is not None:
                self._live.stop()
            self._log.__exit__(None, None, None)
            self._say_told()
            self._folder.workers.unlink(missing_ok=True)

    def __call__(self, event: Event) -> None:
        """Add one event up."""
        with self._lock:
            self._progress.update(event)
        if not self._logged:
            self._logged = True
            self._log.open_file()

    def _follow(self) -> None:
        pause = 0.0
        while not self._over.wait(max(_FRAME, pause)):
            before = time.thread_time()
            self._guarded(self._step)
            pause = _SHARE * (time.thread_time() - before)

    def _guarded(self, do: Callable[[], None]) -> None:
        """Draw; what goes wrong with it is logged once and concerns nobody else."""
        try:
            do()
        except Exception:
            if not self._broken:
                _LOG.info("the progress could not be shown", exc_info=True)
            self._broken = True

    def _step(self) -> None:
        self._say_told()
        now = time.monotonic()
        if now - self._noted >= _WORKERS:
            self._noted = now
            self._note_workers()
        if self._live is not None:
            self._live.update(
                StatusPanel(self._status(), self._message(), rows=self._live.console.height), refresh=True
            )
        elif self._display == "plain":
            self._say_baselines()
        if now - self._lined >= max(_LINE, _RARER * (now - self._began)):
            self._lined = now
            self._say_line()

    def _last(self, error: BaseException | None) -> None:
        """The last picture: where the search has come to."""

        def show() -> None:
            if self._live is not None:
                end = self._progress.stopped or ("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
                message = f"ended, {end}; {duration(time.monotonic() - self._began)}"
                state: State = (
                    "ended" if self._progress.stopped else "interrupted" if self._progress.interrupted else "dead"
                )
                self._live.update(StatusPanel(self._status(state), message), refresh=True)
            elif self._display == "plain":
                self._say_baselines()
            self._say_line()

        self._guarded(show)

    def _status(self, state: State = "running") -> RunStatus:
        workers = tuple(self._work())
        with self._lock:
            status = status_of(self._progress, self._folder, state, "", workers=workers)
        return replace(status, evaluations=self._evaluations)

    def _message(self) -> str:
        now = time.monotonic() - self._began
        seen = self._progress
        if wanted():
            text = "stopping once the candidates that are being evaluated have their scores; Ctrl-C again stops at once"
        elif note := noting(self._work()):
            text = note
        elif not seen.started:
            text = "loading the models and the items"
        elif seen.held_out_asked or sum(seen.counts.values()) >= self._evaluations:
            text = "scoring on the held-out items"
        elif not seen.counts and not seen.in_flight:
            text = "scoring the baselines"
        else:
            text = "searching"
        return f"{_FRAMES[int(8 * now) % len(_FRAMES)]} {text}, {duration(now)}"

    def _say_told(self) -> None:
        while self._told:
            line = self._told.popleft()
            if self._live is not None and self._live.is_started:
                self._live.console.print(line, style="yellow")
            else:
                errors.print(line, style="yellow")

    def _say_baselines(self) -> None:
        with self._lock:
            scores, objective = self._progress.baseline_scores, self._progress.objective
        new = {name: value for name, value in scores.items() if name not in self._baselines}
        self._baselines.update(new)
        for name, value in new.items():
            console.print(f"  baseline {name}: {objective.name if objective else ''} {value:.4f}", soft_wrap=True)

    def _say_line(self) -> None:
        with self._lock:
            seen = sum(self._progress.counts.values())
        if note := noting(self._work()):
            _LOG.info("%s", note)
            if self._display == "plain":
                console.print(f"  {note}", soft_wrap=True)
        if seen and seen != self._seen:
            self._seen = seen
            line = progress_line(self._status())
            _LOG.info("%s", line)
            if self._display == "plain":
                console.print(f"  {line}", soft_wrap=True)

    def _note_workers(self) -> None:
        work = list(self._work())
        if work != self._work_before and self._folder.ledger.exists():
            self._work_before = work
            text = json.dumps([asdict(entry) for entry in work])
            write_text_atomic(self._folder.workers, text, sync=False)

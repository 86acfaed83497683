"""Ends templates and regular expressions of tasks that never end by themselves.

Seconds are the process's own time on a processor, so that a busy or suspended machine ends nothing, and so is the
signal: `SIGVTALRM`, which neither `evaluator.timeout` nor a debugger uses. Python's regular expressions look for
signals while they backtrack, and templates are Python; so both are ended in this process, where their results are
made anyway. Signals reach the main thread alone: in others nothing is limited.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from evomerge.errors import FitnessError

EACH = 0.05
"""Seconds that every use of a template, and every response, adds: what all of them take grows with the documents."""

_AGAIN = 1.0  # seconds until the signal comes again, should code have caught what it raised


class _TimeIsUp(BaseException):
    """Not an `Exception`: lm-eval takes some of those for a document's."""


class _Clock:
    """What one task has left."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self.running = False


_clock: _Clock | None = None


@contextmanager
def limited(task: str, seconds: float | None, doing: str) -> Iterator[None]:
    """Give what a task brings along so many seconds, `timed` parts of what is inside alone counting.

    Args:
        task: for messages.
        seconds: ``None`` for no limit.
        doing: what is done, for messages.

    Raises:
        FitnessError: the time is up.
    """
    global _clock
    before, _clock = _clock, None
    if seconds is not None and threading.current_thread() is threading.main_thread():
        _clock = _Clock(seconds)
    try:
        yield
    except _TimeIsUp:
        raise FitnessError(
            f"task {task!r}: its templates or regular expressions still run after {seconds:g} s of {doing}",
            "those that end: a loop may be endless, or a pattern backtrack without end",
            "correct the task's YAML, or set fitness.task_timeout (held_out.task_timeout) higher if it is meant",
        ) from None
    finally:
        _clock = before


@contextmanager
def timed(uses: int = 1) -> Iterator[None]:
    """Count what is inside as the time of the task that `limited` names, if any; `uses` is how often it is used."""
    clock = _clock
    if clock is None or clock.running:
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _TimeIsUp

    clock.left += EACH * uses
    clock.running = True
    before: Any = signal.signal(signal.SIGVTALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, max(clock.left, 1e-3), _AGAIN)
        yield
    finally:
        clock.left, _ = signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        clock.running = False

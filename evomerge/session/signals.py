"""Signals that end a search: once politely, twice at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): a machine is taken away, or a scheduler's time is over."""


def wanted() -> bool:
    """Whether a search of this process was asked to stop, and has not yet."""
    owner = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    return isinstance(owner, Interrupts) and bool(owner.name)


class Interrupts:
    """While open: the first SIGINT is a wish (`wanted`), the second raises; so does SIGTERM, when nothing is half done.

    Signals reach the main thread of Python only; in another thread nothing is installed.

    Attributes:
        name: of the last signal, empty before there is one.
        settled: says whether an exception may be raised right now; otherwise the next call of `wanted` raises it.
    """

    def __init__(self) -> None:
        self.name = ""
        self.settled: Callable[[], bool] = lambda: True
        self._terminated = False
        self._before: dict[int, Any] = {}

    def wanted(self) -> bool:
        """Whether the search should stop; `Terminated` where that was put off."""
        if self._terminated:
            self._terminated = False
            raise Terminated(self.name)
        return bool(self.name)

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._arrive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        again, self.name = bool(self.name), signal.Signals(number).name
        if number == signal.SIGTERM and not self.settled() and not self._terminated:
            self._terminated = True
        elif number == signal.SIGTERM:
            raise Terminated(self.name)
        elif again:
            raise KeyboardInterrupt(self.name)

"""Time of a search that several sessions worked on."""

from __future__ import annotations

from typing import Any

from evomerge.report.trial import time_of


class Clock:
    """Seconds of something over several sessions, from times that stay text until they are asked for."""

    def __init__(self) -> None:
        self._begin: Any = None
        self._mark: Any = None
        self._before = 0.0
        self._ran = False

    @property
    def running(self) -> bool:
        """Whether it has begun in this session."""
        return self._begin is not None

    @property
    def seconds(self) -> float:
        """From the beginning to the last mark, of all sessions."""
        if self._mark is None or self._begin is None:
            return self._before
        return self._before + max(0.0, (time_of(self._mark) - time_of(self._begin)).total_seconds())

    def begin(self, time: Any) -> None:
        """It runs from this time on, unless it does already."""
        if self._begin is None:
            self._begin, self._ran = time, True

    def mark(self, time: Any) -> None:
        """It has run until this time at least."""
        self._mark = time

    def go_on(self, time: Any) -> None:
        """Where it ran in an earlier session, it runs again from now."""
        if self._ran:
            self._begin, self._mark = time, None

    def end(self, time: Any = None) -> None:
        """A session is over at this time; at the last mark where none is given."""
        if self._begin is not None:
            self._mark = self._mark if time is None else time
            self._before = self.seconds
        self._begin = self._mark = None

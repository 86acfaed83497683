"""A limit to what one case of a fuzzer may take."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TooLong(BaseException):
    """Not an `Exception`: nothing that is tried may take it for one of its own."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `TooLong` in the main thread after so long, whatever it waits for, other processes aside.

    Time in which the thread could have run and had no processor does not count, where the system says how much that
    was (Linux): on a busy machine a case takes no longer than on a quiet one.
    """
    start, stolen = time.monotonic(), _waited_for_a_processor()

    def ring(*_: object) -> None:
        left = seconds - (time.monotonic() - start) + (_waited_for_a_processor() - stolen)
        if left <= 0:
            raise TooLong(f"it takes longer than {seconds:g} s")
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.01))

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _waited_for_a_processor() -> float:
    """Seconds that the main thread was ready and did not run."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0

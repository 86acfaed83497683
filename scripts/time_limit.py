"""A limit to what one case of a fuzzer may take."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class TooLong(BaseException):
    """Not an `Exception`: nothing that is tried may take it for one of its own."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `TooLong` in the main thread after so long, whatever it waits for."""

    def ring(*_: object) -> None:
        raise TooLong(f"it takes longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

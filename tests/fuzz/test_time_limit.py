"""The limit of a fuzzer's case: what waits is ended in time, and waiting for a processor is no part of it."""

from __future__ import annotations

import itertools
import time

import pytest

from scripts import time_limit
from scripts.time_limit import TooLong, within


def test_what_sleeps_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(TooLong, match=r"it takes longer than 0\.2 s"), within(0.2):
        time.sleep(60)
    assert time.monotonic() - start < 30
    with within(0.2):  # nothing rings later
        pass
    time.sleep(0.3)


def test_time_without_a_processor_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = itertools.chain([5.0, 5.1, 5.3], itertools.repeat(5.3))  # seconds, at every look
    monkeypatch.setattr(time_limit, "_waited_for_a_processor", lambda: next(waited))
    start = time.monotonic()
    with pytest.raises(TooLong), within(0.1):
        time.sleep(60)
    assert time.monotonic() - start > 0.35

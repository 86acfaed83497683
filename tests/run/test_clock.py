"""How long a search has searched, and what going on would gain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from evomerge.run.clock import SearchClock
from evomerge.run.remaining_gain import LEAST, RemainingGain, remaining_gain

START = datetime(2026, 1, 2, tzinfo=UTC)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def clock(*events: tuple[Any, ...]) -> float:
    found = SearchClock()
    for kind, time, *more in events:
        found.see({"event": kind, "time": at(time) if isinstance(time, int | float) else time, **dict(more)})
    return found.seconds


JUDGED = ("split", "held_out")


def test_sessions_add_up_without_what_is_between_and_without_held_out_items() -> None:
    events = [
        ("started", 0),
        ("told", 10),
        ("interrupted", 15),
        ("resumed", 1000, ("since", at(900))),  # its first candidate took 100 seconds
        ("told", 1000),
        ("told", 1030),
        ("asked", 1031, JUDGED),
        ("told", 1500, JUDGED),
        ("stopped", 1501),
        ("resumed", 5000),
        ("told", 5007),
    ]
    assert clock(*events) == 15 + 100 + 30 + 7


@pytest.mark.parametrize("time", [None, 3, "soon", "2026-01-02T00:00:05", "0001-01-01T00:00:00+14:00"])
def test_times_that_say_nothing_are_passed_over(time: Any) -> None:
    found = SearchClock()
    for event in ({"time": at(0)}, {"time": time}, {"time": at(20)}):
        found.see({"event": "told", **event})
    assert 0 <= found.seconds <= 366 * 86400
    if time != "0001-01-01T00:00:00+14:00":
        assert found.seconds == 20


def test_a_clock_that_is_set_back_counts_nothing() -> None:
    assert clock(("started", 100), ("told", 50), ("told", 60)) == 10


def test_independent_scores_gain_about_what_is_said() -> None:
    """Accuracies of 100 items: what 100 more gain on average, from the first 100."""
    found, held = [], 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scores = rng.binomial(100, 0.6, 100) / 100
        truth = np.maximum(rng.binomial(100, 0.6, (200, 100)).max(axis=1) / 100 - scores.max(), 0).mean()
        estimate = remaining_gain(scores, scores.max(), 100)
        assert estimate is not None
        found.append((estimate.expected, truth))
        held += estimate.low <= truth <= estimate.high
    expected, true = np.mean(found, axis=0)
    assert true / 2 < expected < 2 * true
    assert held >= 45


def test_a_best_below_the_tail_gains_the_whole_way() -> None:
    """Of exponential scores, the largest of n is ln n + 0.577 on average."""
    found = [remaining_gain(np.random.default_rng(seed).exponential(size=400), 0.0, 400) for seed in range(20)]
    assert np.mean([gain.expected for gain in found if gain is not None]) == pytest.approx(
        np.log(400) + 0.577, rel=0.12
    )


def test_the_best_so_far_counts_and_so_does_how_many_more() -> None:
    scores = np.random.default_rng(0).normal(size=100)
    few, many, far = (remaining_gain(scores, best, more) for best, more in ((1.0, 10), (1.0, 1000), (99.0, 1000)))
    assert few is not None
    assert many is not None
    assert far is not None
    assert 0 < few.low < few.expected < few.high < many.expected
    assert (far.expected, far.low, far.high) == (0, 0, 0)


def test_too_little_is_not_guessed_from() -> None:
    scores = [0.1 * i for i in range(LEAST - 1)]
    assert remaining_gain(scores, 2.0, 10) is None
    assert remaining_gain([*scores, float("nan")], 2.0, 10) is None
    assert remaining_gain([*scores, 0.3], float("nan"), 10) is None
    equal = remaining_gain(LEAST * [0.5], 0.5, 10)
    assert equal == RemainingGain(10, 0.0, 0.0, 0.0)


def test_it_is_written_and_read() -> None:
    gain = RemainingGain(50, 0.00123, 0.0, 0.0049)
    assert RemainingGain.from_json(gain.to_json()) == gain
    told = "50 more like the latest would gain about 0.0012 (90 % of bootstrap samples: 0 to 0.0049)"
    assert str(gain) == told
    for odd in (None, [], {"evaluations": 3}, {**gain.to_json(), "low": "NaN"}, {**gain.to_json(), "evaluations": 2.0}):
        assert RemainingGain.from_json(odd) is None

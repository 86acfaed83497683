"""The cheap rung of a race: who goes on, what those that fall are told with, and what strategies are told of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import ConfigError
from evomerge.objectives import Objective
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import ModelRef, SliceId
from evomerge.search.finalists import Leaders
from evomerge.search.racing.cheap import on_line, ordered_below
from evomerge.search.racing.knowledge import Knowledge
from evomerge.search.racing.race import Race
from evomerge.search.racing.raced import RacedEvaluations, ranked
from evomerge.search.racing.settings import Racing

SCORE, LOSS = Objective("score"), Objective("loss", "minimize")
COUNTS = {"task": 20}
POOL = PoolInfo(
    refs=tuple((name, ModelRef(name, fingerprint=f"sha256:{name}")) for name in ("base", "a")),
    sources=("a",),
    base="base",
    slices=(SliceId("embed"),),
    layers=1,
    dtype="float32",
)


class Worker:
    """Scores a candidate by its number: on every item its quality; on the cheap rung a loss, or nothing."""

    slots = 1

    def __init__(self, qualities: Sequence[float], losses: Sequence[float], fails: Sequence[int] = ()) -> None:
        self.qualities, self.losses, self.fails = qualities, losses, fails
        self.calls: list[tuple[int, Split]] = []
        self._queue: list[tuple[Candidate, Split]] = []

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        self._queue.append((candidate, split))

    def collect(self) -> Evaluation:
        candidate, split = self._queue.pop(0)
        number = candidate.id
        self.calls.append((number, split))
        seconds = {"merge": 1.0, "model": 2.0, "other": 0.5}
        if split == "cheap":
            if math.isnan(self.losses[number]):
                return Evaluation(number, "failed", split, error="no loss", seconds=seconds)
            loss = {"loss": self.losses[number]}
            return Evaluation(number, "ok", split, loss, loss, seconds=seconds, merge={"computed": 3.0})
        assert candidate.part is not None
        if number in self.fails:
            return Evaluation(number, "failed", split, error="it broke")
        values = np.full(20, np.nan)
        values[list(candidate.part["task"])] = self.qualities[number]
        score = {"score": self.qualities[number]}
        return Evaluation(number, "ok", split, score, score, {"task/acc": values}, seconds, {"computed": 1.0})

    def fingerprint(self, split: Split) -> str:
        return ""

    def close(self) -> None: ...


def race_of(settings: Racing) -> Race:
    return Race(settings, COUNTS, Knowledge(None, (SCORE,)), (SCORE,), 0, None, LOSS)


def told(worker: Worker, race: Race, first: int = 0, count: int = 4) -> tuple[dict[int, Evaluation], dict[int, float]]:
    """The evaluations of a generation, and what a strategy is told as their scores."""
    pending = RacedEvaluations(worker, ordered=True, race=race, bar=lambda candidate: None)
    for number in range(first, first + count):
        pending.submit(Candidate(number, POOL.linear({"a": number / 10})))
    found, shown = {}, {}
    while pending:
        candidate, evaluation = pending.next_result()
        race.see(evaluation)
        found[candidate.id] = evaluation
        shown[candidate.id] = pending.shown(evaluation).objectives.get("score", math.nan)
    return found, shown


def test_the_better_half_is_scored_and_the_others_are_estimated() -> None:
    worker = Worker([0.5, 0.2, 0.9, 0.1], [0.6, 0.9, 0.2, 0.7])
    found, shown = told(worker, race_of(Racing(20)))
    assert worker.calls == [*((number, "cheap") for number in range(4)), (2, "search"), (0, "search")]  # the best first
    assert [found[number].status for number in range(4)] == ["ok", "pruned", "ok", "pruned"]
    # The line through (0.6, 0.5) and (0.2, 0.9): 1.1 - loss.
    assert found[1].objectives["score"] == pytest.approx(0.2)
    assert found[3].objectives["score"] == pytest.approx(0.4)
    assert found[1].race == {"items": 0.0, "of": 20.0, "cheap": 0.9}
    assert found[2].race == {"items": 20.0, "of": 20.0, "cheap": 0.2, "step/0": 0.9}
    assert found[1].error == "fell on the cheap rung"
    assert not found[1].items
    assert shown == {number: evaluation.objectives["score"] for number, evaluation in found.items()}


def test_its_time_and_merges_are_counted() -> None:
    found, _ = told(Worker([0.5, 0.2], [0.1, 0.9]), race_of(Racing(20)), count=2)
    assert found[0].seconds == {"merge": 2.0, "cheap": 2.5, "model": 2.0, "other": 0.5}
    assert found[1].seconds == {"merge": 1.0, "cheap": 2.5}
    assert (found[0].merge, found[1].merge) == ({"computed": 4.0}, {"computed": 3.0})


def test_those_that_go_on_race_as_ever() -> None:
    worker = Worker([0.5, 0.2, 0.9, 0.1], [0.3, 0.4, 0.5, 0.6])
    found, _ = told(worker, race_of(Racing(10, keep_cheap=0.7)))
    assert [call for call in worker.calls if call[1] == "search"] == [(n, "search") for n in (0, 1, 2, 2, 0)]
    assert [found[number].race["items"] for number in range(4)] == [20, 10, 20, 0]
    assert [found[number].status for number in range(4)] == ["ok", "pruned", "ok", "pruned"]


def test_whoever_fell_stands_below_all_who_were_scored() -> None:
    """Losses rank the generation in the wrong order: the line falls the other way, and the ranks do not follow it."""
    worker = Worker([0.4, 0.0, 0.5, 0.0, 0.0, 0.6], [0.1, 0.4, 0.2, 0.5, 0.4, 0.3])
    found, shown = told(worker, race_of(Racing(20)), count=6)
    assert found[3].objectives["score"] == pytest.approx(0.8)  # 0.3 + loss
    below = math.nextafter(0.4, 0.0)
    assert shown == {0: 0.4, 2: 0.5, 5: 0.6, 1: below, 4: below, 3: math.nextafter(below, 0.0)}
    assert sorted(shown, key=lambda number: -shown[number])[:3] == [5, 2, 0]


def test_the_line_knows_generations_of_before_also_after_a_resume() -> None:
    qualities, losses = [0.5, 0.2, 0.9, 0.1, 0.8, 0.0], [0.6, 0.9, 0.2, 0.7, 0.1, 0.5]
    race = race_of(Racing(20))
    before, _ = told(Worker(qualities, losses), race)
    after, _ = told(Worker(qualities, losses), race, first=4, count=2)
    points = [(0.6, 0.5), (0.2, 0.9), (0.1, 0.8)]
    assert after[5].objectives["score"] == pytest.approx(np.polyval(np.polyfit(*zip(*points, strict=True), 1), 0.5))
    race.forget()
    for evaluation in before.values():
        race.see(evaluation)
    again, _ = told(Worker(qualities, losses), race, first=4, count=2)
    assert again[5] == after[5]
    assert again[4].objectives == after[4].objectives


def test_one_without_a_score_on_the_rung_has_failed() -> None:
    found, _ = told(Worker([0.5, 0.2, 0.9, 0.1], [0.6, math.nan, 0.2, 0.7]), race_of(Racing(20)))
    assert (found[1].status, found[1].split, found[1].error) == ("failed", "search", "no loss")
    assert [found[number].status for number in (0, 2, 3)] == ["ok", "ok", "pruned"]  # two of three


def test_where_nobody_has_a_score_nothing_is_estimated() -> None:
    found, _ = told(Worker([0.5] * 4, [0.1, 0.2, 0.3, 0.4], fails=[0, 1]), race_of(Racing(20)))
    assert [found[number].status for number in range(4)] == ["failed"] * 4
    assert found[3].error == "fell on the cheap rung, and nobody who went on has a score"
    assert found[0].race == {"cheap": 0.1}  # a session that goes on lets the same go on


def test_all_may_fail() -> None:
    found, _ = told(Worker([0.5] * 2, [math.nan] * 2), race_of(Racing(20)), count=2)
    assert [evaluation.status for evaluation in found.values()] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("points", "at", "value"),
    [
        ([(0.0, 0.0), (1.0, 2.0)], 3.0, 6.0),
        ([(0.0, 1.0), (1.0, 2.0), (2.0, 2.0)], 4.0, 5 / 3 + 1.5),  # slope 1/2 through the means
        ([(1.0, 2.0), (1.0, 4.0)], 7.0, 3.0),
        ([(1e9, 0.25)], 0.0, 0.25),
    ],
)
def test_the_line(points: list[tuple[float, float]], at: float, value: float) -> None:
    assert on_line(points, at) == pytest.approx(value, rel=1e-12)


def test_no_points_are_no_line() -> None:
    assert math.isnan(on_line([], 1.0))


def fallen(scores: Mapping[int, tuple[float, float]], name: str = "score") -> dict[int, Evaluation]:
    return {
        number: Evaluation(number, "pruned", objectives={name: value}, race={"items": 0.0, "cheap": cheap})
        for number, (cheap, value) in scores.items()
    }


def test_ranks_made_by_hand() -> None:
    scores = {1: (0.3, 0.5), 2: (0.2, 0.9), 3: (0.2, 0.9), 4: (0.1, 0.1), 5: (0.0, 0.1)}
    found = ordered_below(fallen(scores), 0.4, Objective("cheap"), SCORE)
    one = math.nextafter(0.4, 0.0)
    two = math.nextafter(one, 0.0)
    assert found == {1: one, 2: two, 3: two, 4: 0.1, 5: math.nextafter(0.1, 0.0)}
    # An objective of which less is better: gains are negative, and below is more.
    down = {number: (cheap, -value) for number, (cheap, value) in scores.items()}
    low = ordered_below(fallen(down, "loss"), 0.4, Objective("cheap"), LOSS)
    assert low == {number: -value for number, value in found.items()}


def test_those_pruned_later_come_between() -> None:
    evaluations: dict[int, Any] = fallen({0: (0.1, 0.9), 1: (0.2, 0.3)})
    for number, score, steps in ((2, 0.7, 1), (3, 0.6, 2)):
        race = {"items": 5.0, "cheap": 0.0, **{f"step/{step}": 0.0 for step in range(steps)}}
        evaluations[number] = Evaluation(number, "ok", objectives={"score": score}, race=race)
    found = ranked(evaluations, SCORE, LOSS)
    assert found == {3: 0.6, 2: 0.6, 0: math.nextafter(0.6, 0.0), 1: 0.3}


def test_no_finalist_was_never_scored() -> None:
    leaders = Leaders(SCORE, 2)
    for number, evaluation in fallen({0: (0.1, 0.9)}).items():
        leaders.see(Candidate(number, POOL.linear({"a": 0.1})), evaluation)
    assert leaders.candidates == []


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"search\.racing\.keep_cheap is 1\.0"):
        Racing(0.1, keep_cheap=1.0)

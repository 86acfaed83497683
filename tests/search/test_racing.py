"""Candidates that are scored on some items first: the order of items, the steps, who goes on, and who wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.candidate import Candidate, Evaluation, Items, Split
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Estimate
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import ModelRef, SliceId
from evomerge.search.finalists import Leaders, best_of, favourite, worth
from evomerge.search.incumbent import Incumbent
from evomerge.search.racing.joined import Runner
from evomerge.search.racing.knowledge import Knowledge
from evomerge.search.racing.opponents import opponent
from evomerge.search.racing.parts import ItemOrder, join, size
from evomerge.search.racing.race import Race
from evomerge.search.racing.raced import RacedEvaluations, ranked
from evomerge.search.racing.settings import Racing
from evomerge.strategies.random_search import RandomSearch
from fitness.estimators.stratified_mean import StratifiedMean

SCORE = (Objective("score"),)
COUNTS = {"one": 80, "two": 20}
POOL = PoolInfo(
    refs=tuple((name, ModelRef(name, fingerprint=f"sha256:{name}")) for name in ("base", "a")),
    sources=("a",),
    base="base",
    slices=(SliceId("embed"),),
    layers=1,
    dtype="float32",
)


class TestItemOrder:
    def test_stretches_that_meet_share_no_item_and_are_all_items(self) -> None:
        order = ItemOrder(COUNTS, seed=1)
        parts = [order.part(first / 10, (first + 1) / 10) for first in range(10)]
        assert [size(part) for part in parts] == [10] * 10
        assert all({task: len(places) for task, places in part.items()} == {"one": 8, "two": 2} for part in parts)
        for task, count in COUNTS.items():
            assert sorted(place for part in parts for place in part[task]) == list(range(count))

    def test_begins_again_behind_the_last(self) -> None:
        order = ItemOrder(COUNTS, seed=1)
        assert order.part(0.9, 1.1) == join(order.part(0.9, 1.0), order.part(0.0, 0.1))
        assert order.part(1.2, 1.3) == order.part(0.2, 0.3)

    def test_every_task_has_an_item(self) -> None:
        order = ItemOrder({"large": 1000, "small": 2}, seed=0)
        assert all(len(order.part(k / 50, (k + 1) / 50)["small"]) == 1 for k in range(50))
        assert size(order.part(0.0, 3.0)) == 1002

    def test_begins_with_those_that_are_preferred(self) -> None:
        preferred = [7, 5, 3, 1, 0, 2, 4, 6]
        order, drawn = ItemOrder({"task": 8}, seed=0, preferred={"task": preferred}), ItemOrder({"task": 8}, seed=0)
        first = drawn.part(0.0, 1 / 8)["task"]
        assert first == (2,)  # of its own, so that the next is the first preferred one
        assert order.part(0.0, 0.25) == {"task": (2, 7)}
        half = set(order.part(0.0, 0.5)["task"])
        assert {2, 7, 5} < half
        assert len(half) == 4

    def test_preferred_ones_are_the_same_for_all_and_those_between_are_not(self) -> None:
        order = ItemOrder({"task": 100}, seed=0, preferred={"task": [*range(100)]})
        parts = [set(order.part(0.0, 0.2, start)["task"]) for start in (0.0, 0.3, 0.6)]
        assert all(len(part) == 20 and set(range(10)) <= part for part in parts)
        assert len(parts[0] & parts[1] & parts[2] - set(range(12))) < 2
        for start in (0.0, 0.3):
            stretches = [order.part(k / 10, (k + 1) / 10, start)["task"] for k in range(10)]
            assert sorted(place for part in stretches for place in part) == [*range(100)]

    def test_another_seed_is_another_order(self) -> None:
        assert ItemOrder(COUNTS, seed=1).part(0, 0.1) == ItemOrder(COUNTS, seed=1).part(0, 0.1)
        assert ItemOrder(COUNTS, seed=1).part(0, 0.1) != ItemOrder(COUNTS, seed=2).part(0, 0.1)


class TestSettings:
    def test_steps_double_up_to_the_most(self) -> None:
        assert Racing(0.1).steps(100) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0])
        assert Racing(25, most=50).steps(100) == pytest.approx([0.25, 0.5])
        assert Racing(10, keep=0.25, most=0.4).steps(100) == pytest.approx([0.1, 0.4])
        assert Racing(0.1, "none").steps(100) == [0.1]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"first": 0}, "search.racing.first is 0"),
            ({"first": 1.5}, "search.racing.first is 1.5"),
            ({"first": math.nan}, "search.racing.first is nan"),
            ({"first": 0.1, "most": -1}, "search.racing.most is -1"),
            ({"first": 0.1, "against": "generations"}, "search.racing.against is 'generations'.*generation"),
            ({"first": 0.1, "keep": 1.0}, "search.racing.keep is 1.0"),
            ({"first": 0.1, "confidence": 0.2}, "search.racing.confidence is 0.2"),
        ],
    )
    def test_refused(self, arguments: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            Racing(**arguments)

    def test_more_items_than_there_are(self) -> None:
        with pytest.raises(ConfigError, match="first is 101; at most 100"):
            Racing(101).steps(100)
        with pytest.raises(ConfigError, match="at most as many items at first as in the end"):
            Racing(0.5, most=0.2).steps(100)


class Means:
    """Plain means of the values, over tasks; knows how often it was fitted."""

    fits = 0

    def fit(self, known: Sequence[Items]) -> None:
        self.fits += 1
        self.known = len(known)

    def order(self, counts: Mapping[str, int]) -> None:
        return None

    def estimate(self, items: Items) -> dict[str, Estimate]:
        return {"score": Estimate(float(np.mean([np.nanmean(values) for values in items.values()])), 0.5)}

    def difference(self, items: Items, other: Items) -> dict[str, Estimate]:
        found = np.concatenate([values - other[name] for name, values in items.items()])
        found = found[np.isfinite(found)]
        return {"score": Estimate(float(found.mean()), float(found.std(ddof=1) / math.sqrt(len(found))))}

    def by_item(self, items: Items, at: Items) -> dict[str, Items]:
        return {"score": {name: values / len(items) for name, values in items.items()}}


class Worker:
    """Scores a candidate by its number: its quality, the same on every item but for a little that is the item's own."""

    slots = 1

    def __init__(self, qualities: Mapping[int, float], fails: Sequence[tuple[int, int]] = ()) -> None:
        self.qualities, self.fails = qualities, set(fails)
        self.items: dict[int, int] = {}
        self.calls: list[int] = []
        self._queue: list[Candidate] = []

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        self._queue.append(candidate)

    def collect(self) -> Evaluation:
        candidate = self._queue.pop(0)
        self.calls.append(candidate.id)
        part = candidate.part or {task: range(count) for task, count in COUNTS.items()}
        if (candidate.id, self.calls.count(candidate.id)) in self.fails:
            return Evaluation(candidate.id, "failed", error="it broke")
        items = {}
        for task, count in COUNTS.items():
            values = np.full(count, np.nan)
            places = list(part[task])
            values[places] = self.qualities[candidate.id] + np.array(places) % 7 / 1000
            items[f"{task}/acc"] = values
        self.items[candidate.id] = self.items.get(candidate.id, 0) + size(part)
        value = float(np.mean([np.nanmean(values) for values in items.values()]))
        return Evaluation(candidate.id, "ok", "search", {"score": value}, {"m": value}, items, {"model": 1.0})

    def withdraw(self) -> list[int]:
        ids = [candidate.id for candidate in self._queue]
        self._queue.clear()
        return ids

    def fingerprint(self, split: Split) -> str:
        return ""

    def close(self) -> None: ...


def raced(worker: Worker, settings: Racing, *, ordered: bool = True, bar: int | None = None) -> RacedEvaluations:
    race = Race(settings, COUNTS, Knowledge(Means(), SCORE), SCORE, seed=0)
    return RacedEvaluations(worker, ordered=ordered, race=race, bar=lambda candidate: bar)


def candidates(count: int) -> list[Candidate]:
    return [Candidate(number, POOL.linear({"a": number / 10})) for number in range(count)]


def test_half_of_a_generation_goes_on_to_twice_the_items() -> None:
    worker = Worker({0: 0.1, 1: 0.5, 2: 0.3, 3: 0.8, 4: 0.2, 5: 0.7, 6: 0.6, 7: 0.4})
    pending = raced(worker, Racing(0.1, most=0.4))
    for candidate in candidates(8):
        pending.submit(candidate)
    found = {}
    while pending:
        candidate, evaluation = pending.next_result()
        found[candidate.id] = evaluation
    assert list(found) == list(range(8))  # in the order asked
    assert worker.items == {0: 10, 1: 20, 2: 10, 3: 40, 4: 10, 5: 40, 6: 20, 7: 10}
    assert [number for number, evaluation in found.items() if evaluation.status == "ok"] == [3, 5]
    assert found[6].status == "pruned"
    assert found[6].error == "pruned after 20 of 100 items"
    assert found[6].race["items"] == 20
    assert set(found[3].race) == {"items", "of", "step/0", "step/1", "step/2", "error/score"}
    assert found[3].objectives["score"] == pytest.approx(0.803, abs=0.001)
    assert found[3].seconds == {"model": 3.0}
    assert int(np.isfinite(found[3].items["one/acc"]).sum()) == 32


def test_nobody_is_estimated_twice_from_the_same_items() -> None:
    class Counting(Means):
        calls = 0

        def estimate(self, items: Items) -> dict[str, Estimate]:
            self.calls += 1
            return super().estimate(items)

    worker, means = Worker({number: number / 10 for number in range(8)}), Counting()
    race = Race(Racing(0.1, most=0.4), COUNTS, Knowledge(means, SCORE), SCORE, seed=0)
    pending = RacedEvaluations(worker, ordered=True, race=race, bar=lambda candidate: None)
    for candidate in candidates(8):
        pending.submit(candidate)
    first = [pending.next_result()[1] for _ in range(8)]
    assert means.calls == 8 + 4 + 2  # once after each step: nothing was learnt meanwhile
    runner = Runner(candidates(1)[0], 0.0)
    runner.add({"one": range(8), "two": range(2)}, first[7])
    before = runner.estimates(race.knowledge)
    assert (runner.estimates(race.knowledge), means.calls) == (before, 15)
    race.knowledge.see(first[7])
    runner.estimates(race.knowledge)
    assert means.calls == 16  # more is known


def test_some_are_scored_on_as_many_items_as_the_best_at_once() -> None:
    worker = Worker({number: number / 10 for number in range(8)})
    race = Race(Racing(0.1, most=0.4), COUNTS, Knowledge(Means(), SCORE), SCORE, seed=0)
    bar, at_once = (lambda candidate: None), (lambda candidate: candidate.id >= 4)
    pending = RacedEvaluations(worker, ordered=True, race=race, bar=bar, at_once=at_once)
    places = []
    for first in (0, 4, 6):
        group = candidates(8)[first : first + (4 if first == 0 else 2)]
        for candidate in group:
            pending.submit(candidate)
        found = [pending.next_result()[1] for _ in group]
        places.append(set(np.flatnonzero(np.isfinite(found[-1].items["one/acc"])).tolist()))
        if first:
            assert [evaluation.status for evaluation in found] == ["ok", "ok"]
            assert all(evaluation.race["items"] == 40 and "step/1" not in evaluation.race for evaluation in found)
    assert worker.items == {0: 10, 1: 10, 2: 20, 3: 40, 4: 40, 5: 40, 6: 40, 7: 40}
    assert worker.calls[-4:] == [4, 5, 6, 7]
    assert not places[1] & places[2]  # a round begins behind the items of the last one


def test_candidates_are_estimated_anew_by_what_is_known_now() -> None:
    class Counted(Means):
        def estimate(self, items: Items) -> dict[str, Estimate]:
            return {"score": Estimate(float(self.known), 0.1)}

    knowledge, worker = Knowledge(Counted(), SCORE), Worker(dict.fromkeys(range(40), 0.1))
    for candidate in candidates(40):
        worker.submit(candidate)
        knowledge.see(worker.collect(), baseline=candidate.id < 2)
    assert knowledge.learnt < 40
    assert knowledge.revised([3, 99]) == [Estimate(40.0, 0.1), None]
    fits = knowledge.estimator.fits  # type: ignore[union-attr]
    assert knowledge.revised([4, 3]) == 2 * [Estimate(40.0, 0.1)]
    assert knowledge.estimator.fits == fits  # type: ignore[union-attr]
    again = Knowledge(Counted(), SCORE)
    for candidate in candidates(40):
        worker.submit(candidate)
        again.see(worker.collect(), baseline=candidate.id < 2)
    again.relearn(38)
    assert again.estimate(knowledge.items(3) or {}, {})["score"].value == 38
    assert Knowledge(None, SCORE).revised([3]) == [None]


def test_finalists_are_chosen_by_what_the_strategy_expects() -> None:
    knowledge, worker = Knowledge(Means(), SCORE), Worker({0: 0.1, 1: 0.5, 2: 0.3})
    race = Race(Racing(0.1), COUNTS, knowledge, SCORE, seed=0)
    for candidate in candidates(3):
        worker.submit(candidate)
        race.see(worker.collect())

    class Expects:
        def expected(self, number: int) -> float | None:
            return {0: 0.7, 1: math.nan}.get(number)

    found = worth(race, Expects())  # type: ignore[arg-type]
    assert [found(0), found(1)] == [0.7, None]
    assert found(2) == pytest.approx(0.303, abs=0.002)
    assert worth(race, None)(1) == pytest.approx(0.503, abs=0.002)
    assert worth(None, Expects())(0) is None  # type: ignore[arg-type]


def test_generations_begin_where_the_last_one_did_not() -> None:
    def begun(rotate: bool) -> list[set[int]]:
        worker = Worker({number: number / 10 for number in range(8)})
        pending = raced(worker, Racing(0.25, "generation", most=0.5, rotate=rotate))
        places = []
        for first in (0, 4):
            for candidate in candidates(8)[first : first + 4]:
                pending.submit(candidate)
            while pending:
                _, evaluation = pending.next_result()
            places.append(set(np.flatnonzero(np.isfinite(evaluation.items["one/acc"])).tolist()))
        return places

    first, second = begun(rotate=True)
    assert len(first - second) == 20  # the last of four goes on to half of the items, from a quarter further on
    first, second = begun(rotate=False)
    assert first == second


def test_one_that_fails_goes_on_no_further() -> None:
    worker = Worker({number: number / 10 for number in range(4)}, fails=[(3, 2), (0, 1)])
    pending = raced(worker, Racing(0.1, most=0.4))
    for candidate in candidates(4):
        pending.submit(candidate, refused="no model" if candidate.id == 1 else None)
    found = [pending.next_result()[1] for _ in range(4)]
    assert [evaluation.status for evaluation in found] == ["failed", "infeasible", "pruned", "failed"]
    # A session that goes on compares the others with it again, as far as it came.
    assert (dict(found[0].race), list(found[3].race)) == ({}, ["step/0"])


def test_all_of_a_generation_may_fail() -> None:
    worker = Worker({0: 0.1, 1: 0.2}, fails=[(0, 1), (1, 1)])
    pending = raced(worker, Racing(0.1))
    for candidate in candidates(2):
        pending.submit(candidate)
    assert [pending.next_result()[1].status for _ in range(2)] == ["failed", "failed"]


def test_whoever_is_surely_worse_than_the_best_is_pruned() -> None:
    worker = Worker({0: 0.5, 1: 0.2, 2: 0.51})
    race = Race(Racing(0.1, "incumbent"), COUNTS, Knowledge(Means(), SCORE), SCORE, seed=0)
    pending = RacedEvaluations(worker, ordered=True, race=race, bar=lambda candidate: 0)
    best = Worker({0: 0.5})
    best.submit(candidates(1)[0])
    race.knowledge.see(best.collect())
    for candidate in candidates(3)[1:]:
        pending.submit(candidate)
    found = [pending.next_result()[1] for _ in range(2)]
    assert [evaluation.status for evaluation in found] == ["pruned", "ok"]
    assert worker.items == {1: 10, 2: 100}
    assert "error/score" not in found[1].race  # all items: no estimate
    assert pending.against == {}


def test_an_objective_that_there_is_not_is_a_failure() -> None:
    """No part of it was wrong: only of all items is there no logarithm."""

    class Logarithm(Means):
        def estimate(self, items: Items) -> dict[str, Estimate]:
            (value, error) = (math.nan, 0.0) if np.isfinite(items["one/acc"]).all() else (-4.0, 1.0)
            return {"score": Estimate(value, error)}

    worker = Worker({0: 0.0})
    race = Race(Racing(0.5, "incumbent"), COUNTS, Knowledge(Logarithm(), SCORE), SCORE, seed=0)
    pending = RacedEvaluations(worker, ordered=True, race=race, bar=lambda candidate: None)
    pending.submit(candidates(1)[0])
    evaluation = pending.next_result()[1]
    assert (evaluation.status, evaluation.objectives, evaluation.error) == ("failed", {}, "objective score is nan")


def test_nobody_is_worse_on_items_that_the_other_has_not() -> None:
    knowledge = Knowledge(StratifiedMean([MetricShare("one/acc", 1.0)], SCORE), SCORE)
    low, high = np.array([0.0, 0.1, 0.0, np.nan, np.nan, np.nan]), np.array([0.9, 0.8, 0.9, 0.9, 0.9, 0.9])
    assert knowledge.worse({"one/acc": low}, {"one/acc": high}, 0.6)
    assert not knowledge.worse({"one/acc": high}, {"one/acc": low}, 0.6)
    assert not knowledge.worse({"one/acc": low}, {"one/acc": np.where(np.isnan(low), high, np.nan)}, 0.6)


def test_a_strategy_says_whom_a_candidate_must_beat() -> None:
    class Population:
        def to_beat(self, candidate: Candidate) -> int | None:
            return candidate.parents[0] if candidate.parents else None

    incumbent = Incumbent(SCORE)
    incumbent.see(Candidate(4, None), Evaluation(4, "ok", objectives={"score": 0.9}))
    asked = Candidate(5, None, parents=(2, 3)), Candidate(6, None)
    assert [opponent(Population(), incumbent)(candidate) for candidate in asked] == [2, None]  # type: ignore[arg-type]
    assert [opponent(RandomSearch, incumbent)(candidate) for candidate in asked] == [4, 4]  # type: ignore[arg-type]


def test_without_a_best_nobody_is_pruned() -> None:
    worker = Worker({0: 0.5, 1: 0.2})
    pending = raced(worker, Racing(0.1, "incumbent"))
    for candidate in candidates(2):
        pending.submit(candidate)
    assert [pending.next_result()[1].status for _ in range(2)] == ["ok", "ok"]


def test_strategies_see_none_of_the_pruned_above_those_that_went_on() -> None:
    def told(number: int, score: float, steps: int) -> Evaluation:
        race = {f"step/{step}": 0.0 for step in range(steps)}
        return Evaluation(number, "pruned", objectives={"score": score}, race=race)

    evaluations = {0: told(0, 0.9, 1), 1: told(1, 0.5, 2), 2: told(2, 0.6, 3), 3: told(3, 0.4, 3), 4: told(4, 0.1, 1)}
    assert ranked(evaluations, Objective("score")) == {0: 0.4, 1: 0.4, 2: 0.6, 3: 0.4, 4: 0.1}
    assert ranked(evaluations, Objective("score", "minimize")) == {0: 0.9, 1: 0.6, 2: 0.6, 3: 0.4, 4: 0.6}


def test_strategies_are_told_estimates_as_scores() -> None:
    worker = Worker({0: 0.1, 1: 0.5})
    pending = raced(worker, Racing(0.1, most=0.2))
    for candidate in candidates(2):
        pending.submit(candidate)
    shown = [pending.shown(pending.next_result()[1]) for _ in range(2)]
    assert [evaluation.status for evaluation in shown] == ["ok", "ok"]
    assert shown[0].objectives["score"] == pytest.approx(0.103, abs=0.002)


def test_a_race_that_is_stopped_tells_nobody() -> None:
    worker = Worker(dict.fromkeys(range(4), 0.1))
    pending = raced(worker, Racing(0.1))
    for candidate in candidates(4):
        pending.submit(candidate)
    assert pending.settled
    assert not pending.step()
    pending.stop()
    assert not pending.expects_result
    assert pending.settled


def test_an_estimator_learns_when_it_knows_a_tenth_more() -> None:
    means = Means()
    knowledge = Knowledge(means, SCORE)
    worker = Worker(dict.fromkeys(range(60), 0.1))
    known = []
    for candidate in candidates(60):
        worker.submit(candidate)
        knowledge.see(worker.collect(), baseline=candidate.id < 3)
        knowledge.learn()
        known.append(means.known)
    assert known[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert means.fits < 40
    late = Knowledge(Means(), SCORE)
    for candidate in candidates(60):
        worker.submit(candidate)
        late.see(worker.collect(), baseline=candidate.id < 3)
    late.learn()
    assert late.estimator.known == means.known  # type: ignore[union-attr]


class TestFinalists:
    def leaders(self, most: int = 3) -> Leaders:
        leaders = Leaders(SCORE[0], most)
        for number, (status, value) in enumerate(
            [("ok", 0.5), ("pruned", 0.9), ("ok", 0.7), ("failed", 0.0), ("ok", 0.6), ("pruned", 0.8)]
        ):
            objectives = {} if status == "failed" else {"score": value}
            evaluation = Evaluation(number, status, objectives=objectives)  # type: ignore[arg-type]
            leaders.see(Candidate(number, POOL.linear({"a": number / 10})), evaluation)
        return leaders

    def test_those_that_finished_their_race_come_first(self) -> None:
        assert [candidate.id for candidate in self.leaders(5).candidates] == [2, 4, 0, 1, 5]

    def test_a_recipe_comes_once(self) -> None:
        leaders = self.leaders()
        leaders.see(Candidate(9, POOL.linear({"a": 0.2})), Evaluation(9, "ok", objectives={"score": 0.99}))
        assert [candidate.id for candidate in leaders.candidates] == [2, 4, 0]

    def test_none_are_kept_where_none_are_wanted(self) -> None:
        assert self.leaders(0).candidates == []

    def test_goes_on_from_its_state(self) -> None:
        leaders = self.leaders()
        again = Leaders(SCORE[0], 3)
        again.load(leaders.state(), {candidate.id: candidate for candidate in leaders.candidates})
        expected = [[2, True, True, 0.7], [4, True, True, 0.6], [0, True, True, 0.5]]
        assert again.state() == leaders.state() == expected
        assert {number: dict(e.objectives) for number, (_, e) in leaders.known.items()} == {
            2: {"score": 0.7},
            4: {"score": 0.6},
            0: {"score": 0.5},
        }

    def test_estimates_are_not_known(self) -> None:
        leaders = Leaders(SCORE[0], 3)
        race = {"items": 10.0, "of": 20.0}
        leaders.see(Candidate(1, POOL.linear({"a": 0.2})), Evaluation(1, "ok", objectives={"score": 0.9}, race=race))
        assert leaders.known == {}

    def test_in_the_end_they_are_estimated_once_more(self) -> None:
        race = {"items": 10.0, "of": 20.0}
        leaders = Leaders(SCORE[0], 2, estimated=True)
        for number, value in enumerate([0.9, 0.8, 0.7, 0.6]):
            recipe = POOL.linear({"a": number / 10})
            leaders.see(Candidate(number, recipe), Evaluation(number, "ok", objectives={"score": value}, race=race))
        lost = Evaluation(4, "pruned", objectives={"score": 0.95}, race=race)
        leaders.see(Candidate(4, POOL.linear({"a": 0.5})), lost)
        assert [candidate.id for candidate in leaders.candidates] == [0, 1, 2, 3, 4]
        leaders.narrow({0: 0.5, 1: 0.75, 3: 0.85, 4: 0.99}.get)
        assert [candidate.id for candidate in leaders.candidates] == [3, 1]
        found = leaders.compared([(candidate, Evaluation(candidate.id, "ok")) for candidate in leaders.candidates])
        assert found["search"] == [0.6, 0.8]

    def test_the_best_of_those_that_could_be_scored(self) -> None:
        scored = [
            (Candidate(0, None), Evaluation(0, "failed")),
            (Candidate(1, None), Evaluation(1, "ok", objectives={"score": 0.5})),
            (Candidate(2, None), Evaluation(2, "ok", objectives={"score": 0.5})),
        ]
        found = best_of(scored, SCORE[0])
        assert found is not None
        assert found[0].id == 1
        assert best_of(scored[:1], SCORE[0]) is None

    def test_the_mean_of_a_distribution_is_one_more(self) -> None:
        from evomerge.strategies.cma_es import CmaEs

        class Space:
            spec = GenomeSpec((Gene("a"), Gene("b")))

            def decode(self, genome: Any) -> Any:
                return POOL.linear({"a": genome.values[0]})

        strategy = CmaEs(Space.spec, SCORE, seed=0, popsize=6)
        assert favourite(Space(), strategy, lambda: 7, set()) == []
        for _ in range(12):
            for number, proposal in enumerate(strategy.ask()):
                score = -abs(proposal.genome.values[0] - 0.3) - abs(proposal.genome.values[1] - 0.6)
                evaluation = Evaluation(number, "ok", objectives={"score": score})
                strategy.tell(Candidate(number, None, proposal.genome), evaluation)
        (found,) = favourite(Space(), strategy, lambda: 7, set())
        assert found.id == 7
        assert found.genome is not None
        assert found.genome.values == pytest.approx((0.3, 0.6), abs=0.05)
        assert found.recipe is not None
        assert favourite(Space(), strategy, lambda: 7, {found.recipe.hash}) == []

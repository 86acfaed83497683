"""What Optuna's pruners decide in a race, by hand, and that nothing but what was told before counts."""

from __future__ import annotations

import binascii
import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import optuna
import pytest

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.objectives import MetricShare, Objective
from evomerge.search.racing.knowledge import Knowledge
from evomerge.search.racing.pruning import Pruning
from evomerge.search.racing.race import Race
from evomerge.search.racing.raced import RacedEvaluations
from evomerge.search.racing.settings import Racing, counted
from evomerge.session.pruners import build_pruner, check_items
from fitness.estimators.stratified_mean import StratifiedMean

SCORE = Objective("score")
LOSS = Objective("score", "minimize")
COUNTS = {"one": 80, "two": 20}
NAN = np.nan


def estimator(*counts: str, objective: Objective = SCORE) -> StratifiedMean:
    made = StratifiedMean(
        [MetricShare(f"{task}/acc", 1 / len(counts), objective.direction) for task in counts], [objective]
    )
    made.fit([])
    return made


class Worker:
    """Scores every item of a candidate with its quality."""

    slots = 8

    def __init__(self, qualities: Sequence[float]) -> None:
        self.qualities = qualities
        self.items: dict[int, int] = {}
        self.queue: list[Candidate] = []

    def submit(self, candidate: Candidate, split: str = "search") -> None:
        self.queue.append(candidate)

    def collect(self) -> Evaluation:
        candidate = self.queue.pop(0)
        assert candidate.part is not None
        items = {}
        for task, count in COUNTS.items():
            values = np.full(count, NAN)
            values[list(candidate.part[task])] = self.qualities[candidate.id]
            items[f"{task}/acc"] = values
        self.items[candidate.id] = self.items.get(candidate.id, 0) + sum(map(len, candidate.part.values()))
        return Evaluation(candidate.id, "ok", objectives={"score": self.qualities[candidate.id]}, items=items)


def race_of(pruner: str | Mapping[str, Any], objective: Objective = SCORE, **more: Any) -> Race:
    settings = Racing(more.pop("first", 0.1), "pruner", pruner=pruner, **more)
    knowledge = Knowledge(estimator(*COUNTS, objective=objective), (objective,))
    return Race(settings, COUNTS, knowledge, [objective], 0, build_pruner(settings, 100))


def run(race: Race, qualities: Sequence[float], at_once: int = 1) -> tuple[dict[int, int], list[Evaluation]]:
    """Items and evaluations of candidates that are asked so many at a time."""
    worker = Worker(qualities)
    pending = RacedEvaluations(worker, ordered=True, race=race, bar=lambda candidate: None)  # type: ignore[arg-type]
    found, left = [], [Candidate(number, None) for number in range(len(qualities))]
    while left or pending:
        while left and len(pending) < at_once:
            pending.submit(left.pop(0))
        found.append(pending.next_result()[1])
        race.see(found[-1])
    return worker.items, found


class TestPercentile:
    WORDS: Mapping[str, Any] = {"name": "percentile", "percentile": 50.0, "n_startup_trials": 3}

    def test_the_lower_half_of_those_that_finished_goes_no_further(self) -> None:
        items, found = run(race_of(self.WORDS), [0.2, 0.6, 0.4, 0.3, 0.5, 0.45, 0.44])
        # medians of those finished, from the fourth on: 0.4, 0.4, 0.45, 0.45
        assert items == {0: 100, 1: 100, 2: 100, 3: 10, 4: 100, 5: 100, 6: 10}
        assert [evaluation.status for evaluation in found[3:]] == ["pruned", "ok", "ok", "pruned"]
        assert found[3].race == {
            "items": 10,
            "of": 100,
            "step/0": 0.3,
            "known": 3,
            "error/score": found[3].race["error/score"],
        }
        assert found[4].race["known"] == 4

    def test_what_is_better_may_be_less(self) -> None:
        items, _ = run(race_of(self.WORDS, LOSS), [0.2, 0.6, 0.4, 0.3, 0.5])
        assert items == {0: 100, 1: 100, 2: 100, 3: 100, 4: 10}

    def test_a_candidate_is_compared_with_those_told_before_it_was_asked(self) -> None:
        items, found = run(race_of(self.WORDS), [0.2, 0.6, 0.4, 0.3, 0.3], at_once=2)
        assert [int(evaluation.race["known"]) for evaluation in found] == [0, 0, 1, 2, 3]
        assert items == {0: 100, 1: 100, 2: 100, 3: 100, 4: 10}

    def test_shares_that_go_on_are_the_races(self) -> None:
        items, _ = run(race_of("percentile", keep=0.2), [0.1, 0.2, 0.3, 0.4, 0.5, 0.43, 0.41])
        assert items == {**dict.fromkeys(range(5), 100), 5: 100, 6: 10}  # 80 % are below 0.42, then below 0.43


def test_successive_halving_compares_rungs() -> None:
    race = race_of("successive_halving")
    items, found = run(race, [0.5, 0.3, 0.6, 0.4, 0.55])
    # the best of two or three, the best two of four or five go on from 10 items, and the best of three from 20
    assert items == {0: 100, 1: 10, 2: 100, 3: 10, 4: 20}
    assert found[4].error == "pruned after 20 of 100 items"


def test_hyperband_has_a_bracket_for_each_candidate_by_its_number() -> None:
    """Each is worse than all before: the first of a bracket is scored on all items, others up to its first rung."""
    items, _ = run(race_of("hyperband"), [0.9 - number / 100 for number in range(40)])
    shares = [math.ceil(4 * 2**s / (s + 1)) for s in (3, 2, 1, 0)]  # of candidates, as Optuna divides them
    begun: set[int] = set()
    for number in range(40):
        place = binascii.crc32(f"race_{number}".encode()) % sum(shares)
        bracket = next(b for b in range(4) if place < sum(shares[: b + 1]))
        assert items[number] == (10 * 2**bracket if bracket in begun else 100)
        begun.add(bracket)
    assert begun == {0, 1, 2, 3}


def test_a_threshold_needs_nobody_to_compare_with() -> None:
    items, _ = run(race_of({"name": "threshold", "lower": 0.25}), [0.2, 0.3])
    assert items == {0: 10, 1: 100}


class TestWilcoxon:
    def pruning(self, threshold: float, tasks: Sequence[str] = ("one",), objective: Objective = SCORE) -> Pruning:
        made = estimator(*tasks, objective=objective)
        pruner = build_pruner(Racing(0.5, "pruner", pruner={"name": "wilcoxon", "p_threshold": threshold}))
        return Pruning(pruner, objective, [4, 8], made)

    def best(self, pruning: Pruning, score: float, **items: list[float]) -> None:
        race = {"items": 8.0, "of": 8.0, "step/0": score, "step/1": score, "known": 0.0}
        values = {f"{task}/acc": np.array(own) for task, own in items.items()}
        pruning.see(Evaluation(1, "ok", objectives={"score": score}, items=values, race=race))

    def p_value(self, differences: Sequence[float]) -> float:
        """Of the signed ranks being as low as they are, by all signs that they may have."""
        ranks = np.argsort(np.argsort(np.abs(differences))) + 1
        observed = ranks[np.array(differences) > 0].sum()
        sums = [ranks @ np.array(signs) for signs in product((0, 1), repeat=len(ranks))]
        return float(np.mean([total <= observed for total in sums]))

    EASY_AND_HARD = (0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.95, 0.05)

    @pytest.mark.parametrize(
        "differences",
        [(-0.01, -0.02, -0.03, -0.04), (-0.01, -0.02, 0.03, -0.04), (-0.01, -0.02, -0.03, -0.04, -0.05, 0.0005)],
    )
    def test_is_the_signed_rank_test_of_the_items_that_both_have(self, differences: tuple[float, ...]) -> None:
        row = [*(np.array(self.EASY_AND_HARD[: len(differences)]) + differences), *[NAN] * (8 - len(differences))]
        p = self.p_value(differences)
        for threshold, pruned in ((p * 0.999, False), (p * 1.001, True)):
            pruning = self.pruning(threshold)
            self.best(pruning, 0.5, one=list(self.EASY_AND_HARD))
            assert pruning.prunes(2, [0.5], {"one/acc": np.array(row)}, known=1) is pruned
            assert pruning.prunes(2, [0.5], {"one/acc": np.array(row)}, known=0) is False

    def test_hard_items_are_no_reason(self) -> None:
        """A mean of a sixth, where the best has a half: on these items it is the better one."""
        pruning = self.pruning(0.4)
        self.best(pruning, 0.5, one=list(self.EASY_AND_HARD))
        hard = np.array([NAN, 0.12, NAN, 0.23, NAN, 0.34, NAN, 0.07])
        assert not pruning.prunes(2, [np.nanmean(hard)], {"one/acc": hard}, known=1)
        assert pruning.prunes(2, [np.nanmean(hard)], {"one/acc": hard - 0.1}, known=1)

    def test_items_of_small_tasks_count_as_much_as_they_do_in_the_objective(self) -> None:
        """Of two tasks that count the same, one has six items, one two: one of these counts as three of those."""
        for objective, sign in ((SCORE, 1.0), (LOSS, -1.0)):
            pruning = self.pruning(0.2, ("one", "two"), objective)
            row = pruning._items({"one/acc": np.full(6, 0.3), "two/acc": np.full(2, 0.5)})
            assert row == {}  # nothing was told yet
            self.best(pruning, 0.5 * sign, one=[0.5] * 6, two=[0.5] * 2)
            row = pruning._items({"one/acc": np.full(6, 0.3), "two/acc": np.array([0.5, NAN])})
            assert row == pytest.approx({**dict.fromkeys(range(6), 0.3 / 2 * 8 / 6), 6: 0.5 / 2 * 8 / 2})

    def test_races_end_where_the_best_is_surely_not_reached(self) -> None:
        items, found = run(race_of("wilcoxon", first=0.2), [0.5, 0.2, 0.5, 0.6, 0.55])
        assert items == {0: 100, 1: 20, 2: 100, 3: 100, 4: 20}
        assert [evaluation.status for evaluation in found] == ["ok", "pruned", "ok", "ok", "pruned"]

    def test_is_as_sure_as_the_race(self) -> None:
        assert build_pruner(Racing(0.1, "pruner", pruner="wilcoxon", confidence=0.8))._p_threshold == 0.2  # type: ignore[attr-defined]

    def test_needs_to_know_what_items_count(self) -> None:
        with pytest.raises(ConfigError, match=r"does not say what its items count.*search.racing.pruner=percentile"):
            check_items(build_pruner(Racing(0.1, "pruner", pruner="wilcoxon")), None)
        check_items(build_pruner(Racing(0.1, "pruner", pruner="median")), None)


@pytest.mark.parametrize("name", ["wilcoxon", "hyperband", "percentile", "successive_halving"])
def test_decides_alike_from_the_ledger_alone(name: str) -> None:
    """What was told is all that a session that goes on knows."""
    qualities = np.random.default_rng(3).random(30).round(3).tolist()
    race = race_of(name, first=0.2)
    _, found = run(race, qualities, at_once=3)
    statuses = [evaluation.status for evaluation in found]
    assert {"ok", "pruned"} == set(statuses)
    again = race_of(name, first=0.2)
    for evaluation in found:
        again.see(evaluation)
    assert race.pruning is not None
    assert again.pruning is not None
    before, after = race.pruning._storage.told, again.pruning._storage.told
    assert [(t.state, t.intermediate_values, t.system_attrs) for t in before] == [
        (t.state, t.intermediate_values, t.system_attrs) for t in after
    ]
    again.forget()
    assert again.pruning.told == 0


def test_values_are_of_the_items_alone_whatever_was_learnt() -> None:
    race = race_of("median")
    assert race.pruning is not None
    items = {"one/acc": np.array([1.0, 0.0, NAN, NAN]), "two/acc": np.array([1.0, NAN])}
    assert race.pruning.value(items, {"score": 9.0}) == 0.75
    without = Pruning(optuna.pruners.MedianPruner(), SCORE, [1, 2], None)
    assert without.value(items, {"score": 9.0}) == 9.0


def test_steps_have_the_same_number_for_all() -> None:
    assert counted(Racing(0.15, "pruner", pruner="median").steps(77), 77) == [12, 23, 46, 77]


@pytest.mark.parametrize(
    ("pruner", "words"),
    [
        ("wilcoxn", "search.racing.pruner is 'wilcoxn'; did you mean 'wilcoxon'"),
        ("threshold", "search.racing.pruner is threshold: Either lower or upper must be specified"),
        (7, "search.racing.pruner is 7; hyperband, median"),
        ({"p_threshold": 0.1}, "search.racing.pruner is .*; hyperband, median"),
        ({"name": "wilcoxon", "p": 0.1}, "search.racing.pruner has no key 'p'.*p_threshold"),
        ({"name": "wilcoxon", "p_threshold": 3.0}, "p_threshold must be between 0 and 1 but got 3.0; "),
        ({"name": "median", "n_startup_trials": "3"}, "search.racing.pruner.n_startup_trials is '3'; .*whole number"),
        ({"_target_": "optuna.samplers.RandomSampler"}, "search.racing.pruner._target_ is .*a pruner has prune"),
        ({"_target_": "optuna.pruners.Median"}, "optuna.pruners has no such class"),
        ({"_target_": f"{__name__}.Clumsy"}, "search.racing.pruner cannot decide: ZeroDivisionError"),
        ({"_target_": f"{__name__}.Stranger"}, "a class derived from optuna.pruners.BasePruner"),
    ],
)
def test_refused(pruner: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_pruner(Racing(0.1, "pruner", pruner=pruner))


class Clumsy(optuna.pruners.BasePruner):
    def prune(self, study: Any, trial: Any) -> bool:
        return bool(1 / 0)


class Stranger:
    def prune(self, study: Any, trial: Any) -> bool:
        return False


def test_one_of_ones_own_is_built_as_any_part() -> None:
    node = {
        "_target_": "optuna.pruners.PatientPruner",
        "wrapped_pruner": {"_target_": "optuna.pruners.MedianPruner"},
        "patience": 2,
    }
    assert isinstance(build_pruner(Racing(0.1, "pruner", pruner=node)), optuna.pruners.PatientPruner)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"against": "pruner"}, "search.racing.pruner is null.*search.racing.pruner=wilcoxon"),
        ({"pruner": "wilcoxon"}, "search.racing.against is generation.*search.racing.against=pruner"),
    ],
)
def test_a_race_against_a_pruner_has_one(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Racing(0.1, **arguments)

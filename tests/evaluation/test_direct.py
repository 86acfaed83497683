"""The evaluator without models."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from evomerge.candidate import Candidate
from evomerge.errors import ConfigError, FitnessError
from evomerge.evaluation.direct import DirectEvaluator
from evomerge.genomes.arrays import ArrayGenome
from evomerge.genomes.genome import Genome
from evomerge.objectives import Objective
from evomerge.protocols import Scores


class Sum:
    """The sum of the elements; refuses negative ones."""

    objectives = (Objective("sum"),)

    def check(self) -> None: ...

    def cautions(self) -> list[str]:
        return []

    def fingerprint(self) -> str:
        return "sum"

    def score(self, weights: np.ndarray) -> Scores:
        assert weights.dtype == np.float32
        if (weights < 0).any():
            raise FitnessError("negative weights", "others")
        total = float(weights.sum())
        return Scores({"sum": total}, {"t/m": total}, {"t/m": weights.astype(np.float64)}, {"model": 0.0})


def test_candidates_are_scored_in_order() -> None:
    evaluator = DirectEvaluator({"search": Sum(), "held_out": Sum()})
    evaluator.submit(Candidate(4, None, ArrayGenome(np.array([1.0, 2.0]))))
    evaluator.submit(Candidate(5, None, Genome((0.5, 0.25))), "held_out")
    first, second = evaluator.collect(), evaluator.collect()
    assert (first.candidate, first.status, first.split, first.objectives) == (4, "ok", "search", {"sum": 3.0})
    assert first.items["t/m"].tolist() == [1.0, 2.0]
    assert (second.candidate, second.split, second.objectives) == (5, "held_out", {"sum": 0.75})
    assert evaluator.fingerprint("held_out") == "sum"


def test_a_candidate_s_failure_is_its_own() -> None:
    evaluator = DirectEvaluator({"search": Sum()})
    evaluator.submit(Candidate(0, None, ArrayGenome(np.array([-1.0]))))
    evaluator.submit(Candidate(1, None, None, name="base"))
    refused, nothing = evaluator.collect(), evaluator.collect()
    assert refused.status == nothing.status == "failed"
    assert "negative weights" in refused.error
    assert "no genome" in nothing.error


class Meeting(Sum):
    """Scores when two have come."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)

    def score(self, weights: np.ndarray) -> Scores:
        self.barrier.wait(timeout=60)
        return super().score(weights)


def test_workers_score_at_the_same_time() -> None:
    evaluator = DirectEvaluator({"search": Meeting()}, workers=2)
    assert evaluator.slots == 2
    for number in range(6):
        evaluator.submit(Candidate(number, None, ArrayGenome(np.array([float(number)]))))
    found = {e.candidate: e.objectives["sum"] for e in (evaluator.collect() for _ in range(6))}
    assert found == {number: float(number) for number in range(6)}
    evaluator.close()


class Slow(Sum):
    """Says that it has begun, and goes on when it may."""

    def __init__(self) -> None:
        self.begun, self.may = threading.Semaphore(0), threading.Event()

    def score(self, weights: np.ndarray) -> Scores:
        self.begun.release()
        self.may.wait(60)
        return super().score(weights)


def test_what_no_worker_has_begun_with_can_be_taken_back() -> None:
    fitness = Slow()
    evaluator = DirectEvaluator({"search": fitness}, workers=2)
    for number in range(5):
        evaluator.submit(Candidate(number, None, ArrayGenome(np.array([1.0]))))
    for _ in range(2):
        fitness.begun.acquire(timeout=60)
    assert evaluator.withdraw() == [2, 3, 4]
    fitness.may.set()
    evaluator.submit(Candidate(5, None, ArrayGenome(np.array([1.0]))))
    assert sorted(evaluator.collect().candidate for _ in range(3)) == [0, 1, 5]
    evaluator.close()


def test_no_worker_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluator\.workers is 0; at least 1"):
        DirectEvaluator({"search": Sum()}, workers=0)


def test_a_fitness_of_models_is_refused() -> None:
    with pytest.raises(ConfigError, match="search fitness object scores models"):
        DirectEvaluator({"search": object()})  # type: ignore[dict-item]

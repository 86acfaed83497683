"""Phases that are searched for each of several preferences: where they begin, what they are shown, their budgets."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.candidate import Candidate, Evaluation
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.objectives import Objective
from evomerge.search.aims import Aims, Nearness, strategy_of
from evomerge.search.incumbent import Incumbent
from evomerge.search.phases import Phase
from evomerge.strategies.bases.scalarised import SCALAR

OBJECTIVES = (Objective("maths"), Objective("loss", "minimize"))
WANTED = ({"maths": 0.9, "loss": 0.1}, {"maths": 0.5, "loss": 0.5}, {"loss": 1.0})
SPEC = GenomeSpec((Gene("x"),))


class Listening:
    """Keeps what it is told."""

    def __init__(self, place: int) -> None:
        self.place, self.told = place, []

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self.told.append(evaluation.objectives)


def phase(evaluations: int = 10) -> Phase:
    def strategy(spec: GenomeSpec, baselines: Any, place: int = 0) -> Any:
        return Listening(place)

    def space(winner: Any) -> Any:
        return None

    return Phase("path", evaluations, space, strategy, True, WANTED)


def told(number: int, maths: float, loss: float) -> Evaluation:
    return Evaluation(number, "ok", objectives={"maths": maths, "loss": loss})


@pytest.fixture
def incumbent() -> Incumbent:
    """A front of three: gains (1, -1), (0.8, -0.5), (0, 0)."""
    found = Incumbent(OBJECTIVES)
    for number, scores in enumerate([(1.0, 1.0), (0.8, 0.5), (0.0, 0.0), (0.5, 0.9)]):
        found.see(Candidate(number, None, SPEC.genome([number / 4])), told(number, *scores))
    return found


def test_an_equal_part_of_the_budget_is_for_each() -> None:
    parts = phase(11).each()
    assert [part.evaluations for part in parts] == [4, 4, 3]
    assert [part.preference for part in parts] == list(WANTED)
    assert [part.strategy(SPEC, {}).place for part in parts] == [0, 1, 2]
    single = Phase("merge", 11, parts[0].space, parts[0].strategy)
    assert single.each() == [single]
    assert single.preference is None


def test_each_begins_with_the_nearest_of_the_front(incumbent: Incumbent) -> None:
    """Ideal (1, 0), scale (1, 1): misses (0, 1), (0.2, 0.5), (1, 0). By 0.9 and 0.1: 0.1, 0.18, 0.9."""
    aims = Aims.of(phase(), incumbent, {})
    assert [winner.id for winner in aims.winners if winner is not None] == [0, 1, 2]
    assert (aims.ideal, aims.scale) == ((1.0, 0.0), (1.0, 1.0))
    known = {candidate.id: candidate for candidate in incumbent.front.values()}
    assert Aims.from_state(aims.state(), known) == aims
    assert Aims.from_state(None, known) is None


def test_without_a_front_the_baselines_are_the_scale() -> None:
    scores = {"base": {"maths": 0.2, "loss": 4.0}, "math": {"maths": 0.6, "loss": 6.0}}
    aims = Aims.of(phase(), Incumbent(OBJECTIVES), scores)
    assert aims.winners == (None, None, None)
    assert aims.ideal == (0.6, -4.0)
    assert aims.scale == pytest.approx((0.4, 2.0))


def test_strategies_are_shown_how_near_it_is(incumbent: Incumbent) -> None:
    """Of (0.9, 0.6) by 0.5 and 0.5: misses (0.1, 0.6), so -(0.3 + 0.001 * 0.7)."""
    aims = Aims.of(phase(), incumbent, {})
    strategy: Any = strategy_of(phase().each()[1], SPEC, {}, aims, incumbent)
    strategy.tell(Candidate(9, None, SPEC.initial), told(9, 0.9, 0.6))
    assert strategy.inner.told == [{SCALAR.name: pytest.approx(-0.3007)}]
    plain = Phase("merge", 5, phase().space, phase().strategy)
    assert isinstance(strategy_of(plain, SPEC, {}, aims, incumbent), Listening)


def test_beyond_the_ideal_is_nearer_still() -> None:
    nearness = Nearness(OBJECTIVES, (1.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    assert nearness({"maths": 1.3, "loss": 0.5}) > nearness({"maths": 1.1, "loss": 0.0}) > 0

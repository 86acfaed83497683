import pytest

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.objectives import Objective, Scalarisation
from evomerge.search.incumbent import Incumbent
from evomerge.strategies.bases.scalarised import SCALAR, Scalarised
from evomerge.strategies.cma_es import CmaEs

BOTH = (Objective("score"), Objective("length", "minimize"))
BASELINES = [{"score": 0.2, "length": 100.0}, {"score": 0.6, "length": 300.0}]


def test_weighted_sum_in_units_of_the_baselines() -> None:
    number = Scalarisation.of(BOTH, "weighted", {"score": 3.0}, BASELINES)
    # score 0.7 is 1.25 of its range, length 150 is 0.75 of it counted from the longest
    assert number({"score": 0.7, "length": 150.0}) == pytest.approx(0.75 * 1.25 + 0.25 * 0.75)


def test_tchebycheff_is_the_weighted_distance_that_is_largest() -> None:
    number = Scalarisation.of(BOTH, "tchebycheff", {}, BASELINES)
    value = number({"score": 0.7, "length": 150.0})
    assert value == pytest.approx(-0.5 * (2 - 0.75) + 1e-3 * 0.5 * (1.25 + 0.75))
    assert number({"score": 0.9, "length": 150.0}) > value  # only the small term knows
    assert number({"score": 0.7, "length": 140.0}) > number({"score": 0.9, "length": 150.0})


def test_without_baselines_values_are_taken_as_they_are() -> None:
    number = Scalarisation.of(BOTH, "weighted", {"score": 1.0, "length": 0.0}, [])
    assert number({"score": 0.7, "length": 150.0}) == 0.7


@pytest.mark.parametrize(
    ("method", "weights", "message"),
    [
        ("sum", {}, "weighted"),
        ("weighted", {"scor": 1.0}, "did you mean 'score'"),
        ("weighted", {"score": -1.0}, "0 or more"),
        ("weighted", {"score": 0.0, "length": 0.0}, "all 0"),
    ],
)
def test_refuses_what_means_nothing(method: str, weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scalarisation.of(BOTH, method, weights, [])


def test_a_strategy_for_one_objective_searches_with_several() -> None:
    spec = GenomeSpec((Gene("a"), Gene("b")))
    number = Scalarisation.of(BOTH, "weighted", {}, [])
    wrapped = Scalarised(CmaEs(spec, (SCALAR,), seed=1, popsize=6), number)
    plain = CmaEs(spec, (SCALAR,), seed=1, popsize=6)
    for generation in range(4):
        ours, theirs = wrapped.ask(), plain.ask()
        assert [p.genome for p in ours] == [p.genome for p in theirs]
        for place, proposal in enumerate(ours):
            candidate = Candidate(10 * generation + place, None, proposal.genome)
            a, b = (float(v) for v in proposal.genome.values)
            wrapped.tell(candidate, Evaluation(candidate.id, "ok", objectives={"score": a, "length": b}))
            plain.tell(candidate, Evaluation(candidate.id, "ok", objectives={"scalarised": a / 2 - b / 2}))
    assert not wrapped.asynchronous


@pytest.mark.parametrize(
    ("rule", "winner"), [(None, 0), ("score", 0), ("length", 2), ("knee", 1), ("weighted", 1), ("tchebycheff", 1)]
)
def test_the_winner_of_a_front_is_chosen_by_the_rule(rule: str | None, winner: int) -> None:
    incumbent = Incumbent(BOTH, rule)
    for scores in BASELINES:
        incumbent.baseline(Evaluation(90, "ok", objectives=scores))
    genome = GenomeSpec((Gene("a"),)).initial
    points = [(0.61, 290.0), (0.58, 120.0), (0.1, 90.0), (0.1, 280.0)]
    events = [
        incumbent.see(Candidate(i, None, genome), Evaluation(i, "ok", objectives={"score": score, "length": length}))
        for i, (score, length) in enumerate(points)
    ]
    assert incumbent.best is not None
    assert incumbent.best.id == winner
    assert [event and event["front"] for event in events] == [1, 2, 3, None]
    assert incumbent.reference == {"score": 0.2, "length": 300.0}
    assert events[1] is not None
    expected = (0.61 - 0.2) * 10 + (0.58 - 0.2) * (290 - 120)
    assert events[1]["hypervolume"] == pytest.approx(expected)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'length'"):
        Incumbent(BOTH, "lenght")

"""What ``search.racing.first: auto`` comes to: how many items, or no race and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from evomerge.config.compose import compose_config
from evomerge.errors import ConfigError, FitnessError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Estimator
from evomerge.search.racing.race import Race
from evomerge.search.racing.settings import Racing
from evomerge.session.race_choice import RaceChoice, chosen_race
from evomerge.session.racing import check_validation, count_finalists
from evomerge.strategies.catcma import CatCma
from evomerge.strategies.cma_es import CmaEs
from evomerge.strategies.genetic import GeneticAlgorithm
from evomerge.strategies.islands import Islands
from evomerge.strategies.m2n2 import M2N2
from fitness.estimators.stratified_mean import StratifiedMean

SCORE = (Objective("score"),)
SPEC = GenomeSpec((Gene("a"), Gene("b")))
CMA = [CmaEs(SPEC, SCORE, seed=0)]


class Fitness:
    """Has so many items, by task."""

    def __init__(self, counts: Mapping[str, int], objectives: tuple[Objective, ...] = SCORE, fails: str = "") -> None:
        self.counts, self.objectives, self.fails = counts, objectives, fails

    def items(self) -> Mapping[str, int]:
        return self.counts

    def build_estimator(self) -> Estimator:
        if self.fails:
            raise FitnessError(self.fails, "a mean")
        shares = [MetricShare(f"{task}/acc", 1.0, "maximize") for task in self.counts]
        return StratifiedMean(shares, self.objectives)


def choose(
    fitness: Any, strategies: Sequence[Any] = CMA, *words: str, cheap: Any = None
) -> tuple[Any, Race | None, RaceChoice | None]:
    config: Any = compose_config(["search.evaluations=300", "~fitness", *words])
    race, choice = chosen_race(config, fitness, strategies, cheap=cheap)
    return config.search.racing, race, choice


def test_items_that_a_candidate_is_scored_on() -> None:
    """24, half of them on 24 more, a quarter on 42 more."""
    assert Racing(24, most=90).expected_items(750) == 24 + 24 / 2 + 42 / 4
    assert Racing(24, "none").expected_items(750) == 24
    assert Racing(24, most=90).expected_items(750, 0.25) == 0.75 * (24 + 24 / 2 + 42 / 4) + 0.25 * 90


@pytest.mark.parametrize(
    ("counts", "first", "most"),
    [
        ({"a": 750}, 24, 90),
        ({"a": 186}, 24, 90),  # 46.5 on average, a quarter
        ({"a": 5000, "b": 5000}, 320, 1200),  # a share of 0.032
        ({str(task): 20 for task in range(100)}, 200, 750),  # two of each task
    ],
)
def test_numbers_of_items(counts: dict[str, int], first: int, most: int) -> None:
    asked, race, choice = choose(Fitness(counts))
    assert race is not None
    assert choice is not None
    assert not choice.because
    assert (asked.first, asked.most, asked.against) == (first, most, "generation")
    assert (choice.first, choice.most, choice.items) == (first, most, sum(counts.values()))
    assert [round(step * race.total) for step in race.steps] == [first, 2 * first, most]
    assert str(choice) == f"a race: every candidate on {first} of {race.total:,} items, the best on {most}"


@pytest.mark.parametrize(
    ("fitness", "strategies", "words", "because"),
    [
        (Fitness({"a": 185}), CMA, [], "items"),
        (Fitness({"a": 10}), CMA, [], "items"),
        (Fitness({"a": 750}), CMA, ["search.evaluations=20"], "evaluations"),  # of which 9 are finalists
        (Fitness({"a": 750}), [M2N2(SPEC, SCORE, seed=0)], [], "strategy"),
        (Fitness({"a": 750}), [GeneticAlgorithm(SPEC, SCORE, seed=0)], [], "strategy"),
        (Fitness({"a": 750}), [*CMA, GeneticAlgorithm(SPEC, SCORE, seed=0)], [], "strategy"),
        (Fitness({"a": 750}), CMA, ["search.ordered=false"], "order"),
        (Fitness({"a": 750}), CMA, ["search.in_flight=3"], "order"),
        (Fitness({"a": 750}), CMA, ["search.finalists=0"], "finalists"),
        (Fitness({"a": 750}), CMA, ["search.target=0.9"], "target"),
        (Fitness({"a": 750}, (*SCORE, Objective("size"))), CMA, [], "objectives"),
        (Fitness({"a": 750}, fails="a/f1 is no mean"), CMA, [], "estimator"),
        (Fitness({"a": 750}), CMA, ["search.racing.most=5"], "items"),  # fewer than at first
        (type("Plain", (), {"objectives": SCORE})(), CMA, [], "fitness"),
    ],
)
def test_no_race(fitness: Any, strategies: Sequence[Any], words: list[str], because: str) -> None:
    asked, race, choice = choose(fitness, strategies, *words)
    assert race is None
    assert choice is not None
    assert choice.because == because
    assert str(choice).startswith("no race: ")
    assert choice.event == {"items": choice.items, "because": because, "reason": choice.reason}
    assert (asked.first, asked.most) == (None, 1.0)


@pytest.mark.parametrize(
    ("total", "most", "says"),
    [
        (750, "5", "search.racing.most=5 is not between 24, the items at first, and 750, all items"),
        (750, "2000", "search.racing.most=2000 is not between 24, the items at first, and 750, all items"),
        (10, "0.2", "of 10 items too many would be needed at first"),
    ],
)
def test_what_was_asked_for_is_named_where_it_leaves_no_race(total: int, most: str, says: str) -> None:
    _, race, choice = choose(Fitness({"a": total}), CMA, f"search.racing.most={most}")
    assert race is None
    assert choice is not None
    assert choice.reason == says


class Space:
    """Has so many genes, all of which act unless it says which."""

    def __init__(self, genes: int, kind: Any = "continuous", active: Any = None) -> None:
        self.spec = GenomeSpec(tuple(Gene(f"g{i}", kind) for i in range(genes)))
        if active is not None:
            self.active = lambda genome: active


@pytest.mark.parametrize(
    ("space", "words", "after"),
    [
        (Space(16), ["search.evaluations=176"], 96),
        (Space(16), ["search.evaluations=1000"], 920),
        (Space(16), ["search.evaluations=160"], 80),
        (Space(17), ["search.evaluations=160"], None),  # five for each gene
        (Space(2), ["search.evaluations=120"], 60),
        (Space(2), ["search.evaluations=118"], None),
        (Space(2, "boolean"), [], None),
        (Space(2, active=["g0"]), [], None),
        (Space(2, active=["g0", "g1"]), [], 220),
        (Space(2), ["search.penalty=0.1"], None),
        (Space(2), ["search.racing.against=none"], None),
        (Space(2), ["search.refine.after=null"], None),
        (Space(2), ["search.refine.after=7"], 7),
        (Space(2), ["search.racing.first=null"], None),
        (Space(2), ["search.racing.first=24"], None),  # what is asked for is what there is
    ],
)
def test_where_a_gaussian_process_takes_over(space: Any, words: list[str], after: int | None) -> None:
    config: Any = compose_config(["search.evaluations=300", "~fitness", *words])
    _, choice = chosen_race(config, Fitness({"a": 750}), CMA, spaces=[space])  # type: ignore[arg-type]
    assert config.search.refine.after == after
    if choice is not None:
        assert choice.refined == (after or 0)
        assert (f"; after {after} a Gaussian process proposes, each on 90" in str(choice)) == (after is not None)


def test_a_gaussian_process_behind_the_last_candidate_is_not_announced() -> None:
    for evaluations, said in ((300, 0), (301, 300)):
        words = [f"search.evaluations={evaluations}", "~fitness", "search.refine.after=300"]
        config: Any = compose_config(words)
        _, choice = chosen_race(config, Fitness({"a": 750}), CMA, spaces=[Space(2)])  # type: ignore[arg-type, list-item]
        assert choice is not None
        assert choice.refined == said
        assert config.search.refine.after == 300  # a longer search comes to it


def test_no_race_no_gaussian_process_that_was_left_open() -> None:
    config: Any = compose_config(["search.evaluations=300", "~fitness"])
    assert chosen_race(config, Fitness({"a": 10}), CMA, spaces=[Space(2)])[0] is None  # type: ignore[arg-type, list-item]
    assert config.search.refine.after is None


def test_one_evaluation_more_makes_up_for_the_finalists() -> None:
    """21 times 46.5 and 9 times 750 are 7,726.5, less than half of 21 times 750."""
    assert choose(Fitness({"a": 750}), CMA, "search.evaluations=21")[1] is not None


def test_what_the_user_says_of_the_race_counts() -> None:
    ga = [GeneticAlgorithm(SPEC, SCORE, seed=0)]
    asked, race, _ = choose(Fitness({"a": 750}), ga, "search.racing.against=incumbent", "search.ordered=false")
    assert race is not None
    assert race.settings.against == "incumbent"
    assert asked.first == 24
    asked, race, _ = choose(Fitness({"a": 750}), CMA, "search.racing.most=0.2")
    assert race is not None
    assert (asked.first, asked.most) == (24, 0.2)
    word = "search.racing={against: pruner, pruner: percentile}"
    assert choose(Fitness({"a": 750}), ga, word)[1] is not None
    asked, race, _ = choose(Fitness({"a": 20}), ga, word)
    assert race is None
    assert (asked.against, asked.pruner) == ("generation", None)


def test_a_number_is_a_number_and_null_no_race() -> None:
    asked, race, choice = choose(Fitness({"a": 50}), CMA, "search.racing.first=10")
    assert race is not None
    assert choice is None
    assert (asked.first, asked.most) == (10, 1.0)
    asked, race, choice = choose(Fitness({"a": 750}), CMA, "search.racing.first=null")
    assert race is None
    assert choice is None
    assert asked.first is None
    with pytest.raises(ConfigError, match="needs the scores of all items"):
        choose(Fitness({"a": 750}), [M2N2(SPEC, SCORE, seed=0)], "search.racing.first=10")
    with pytest.raises(ConfigError, match=r"search.racing.first is 'some'.*a number or 'auto'"):
        compose_config(["~fitness", "search.racing.first=some"])


def test_a_cheap_rung_stands_below_a_race_or_below_all_items() -> None:
    cheap = Fitness({"t": 8}, (Objective("loss", "minimize"),))
    asked, race, choice = choose(Fitness({"a": 750}), CMA, "search.racing.keep_cheap=0.3", cheap=cheap)
    assert race is not None
    assert race.cheap is not None
    assert (asked.first, race.cheap.keep, race.cheap.decides.name) == (24, 0.3, "loss")
    assert str(choice) == "a race: whoever goes on from the cheap rung on 24 of 750 items, the best on 90"
    for words, because in (
        ([], "items"),
        (["search.target=0.9"], "target"),
        (["search.finalists=0"], "finalists"),
        (["search.racing.first=null"], None),
    ):
        asked, race, choice = choose(Fitness({"a": 30}), CMA, *words, cheap=cheap)
        assert race is not None
        assert (race.steps, race.by_generation, race.knowledge.estimator) == ([1.0], True, None)
        assert (asked.first, choice.because if choice is not None else None) == (None, because)
    assert choose(Fitness({"a": 750}), CMA, "search.racing.first=10", cheap=cheap)[1] is not None


class Rated(Fitness):
    """Whose scores people give."""

    def rating(self) -> None:
        """What they are asked."""


@pytest.mark.parametrize(
    ("fitness", "strategies", "words", "cheap", "said"),
    [
        (Fitness({"a": 9}), [M2N2(SPEC, SCORE, seed=0)], [], SCORE, "cheap is set, and strategy M2N2 needs"),
        (Fitness({"a": 9}), [GeneticAlgorithm(SPEC, SCORE, seed=0)], [], SCORE, "cheap is set, and strategy Genetic"),
        (Fitness({"a": 9}), CMA, ["search.ordered=false"], SCORE, "candidates do not come by generations.*cheap=null"),
        (Fitness({"a": 9}, (*SCORE, Objective("size"))), CMA, [], SCORE, "cheap is set, and there are 2 objectives"),
        (
            Fitness({"a": 9}, (*SCORE, Objective("size"))),
            CMA,
            ["search.scalarise=weighted"],
            SCORE,
            "cheap is set, and there are 2 objectives",
        ),
        (Fitness({"a": 9}), CMA, [], (*SCORE, Objective("size")), "cheap has objectives score, size"),
        (Fitness({"a": 9}), CMA, ["search.racing={first: 3, against: incumbent}"], SCORE, "against is incumbent"),
        (type("Plain", (), {"objectives": SCORE})(), CMA, [], SCORE, "cheap is set, and the fitness cannot be asked"),
    ],
)
def test_where_no_race_can_be_a_cheap_rung_is_refused(
    fitness: Any, strategies: Sequence[Any], words: list[str], cheap: tuple[Objective, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        choose(fitness, strategies, *words, cheap=Fitness({"t": 8}, cheap))


def test_people_are_no_cheap_rung() -> None:
    with pytest.raises(ConfigError, match="cheap is a fitness that people rate"):
        choose(Fitness({"a": 750}), cheap=Rated({"t": 8}))


def test_islands_of_m2n2_need_all_items() -> None:
    def m2n2(*given: Any, **more: Any) -> M2N2:
        return M2N2(*given, **more)

    islands = Islands(SPEC, SCORE, seed=0, strategies=[m2n2, CatCma], islands=2)
    assert not islands.estimates
    with pytest.raises(ConfigError, match="Islands needs the scores of all items"):
        choose(Fitness({"a": 750}), [islands], "search.racing.first=10", "search.racing.against=none")


def test_a_winner_is_chosen_by_the_objective_of_the_search() -> None:
    config: Any = compose_config(["~fitness", "fitness@validation=digits", "fitness@held_out=digits"])
    size = (Objective("size", "minimize"),)
    assert count_finalists(config, SCORE, raced=False) == 8
    check_validation(config, SCORE, Fitness({"a": 10}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"validation has size \(minimize\), and the search has score \(maximize\)"):
        check_validation(config, SCORE, Fitness({"a": 10}, size))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="validation is set, and there are 2 objectives"):
        check_validation(config, (*SCORE, *size), Fitness({"a": 10}, (*SCORE, *size)))  # type: ignore[arg-type]
    config.held_out = None
    with pytest.raises(ConfigError, match="validation is set, and held_out is null"):
        check_validation(config, SCORE, Fitness({"a": 10}))  # type: ignore[arg-type]
    config.search.finalists = 0
    with pytest.raises(ConfigError, match=r"validation is set, and search.finalists is 0"):
        check_validation(config, SCORE, Fitness({"a": 10}))  # type: ignore[arg-type]

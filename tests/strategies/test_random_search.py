from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from contracts.strategy_contract import StrategyContract
from contracts.strategy_player import MAXIMISE, MIXED, Make

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.random_search import RandomSearch


class TestRandomSearch(StrategyContract):
    @pytest.fixture
    def make(self) -> Make:
        return partial(RandomSearch, batch=6)


class TestMixedRandomSearch(StrategyContract):
    spec = MIXED

    @pytest.fixture
    def make(self) -> Make:
        return partial(RandomSearch, batch=6)


KINDS = GenomeSpec(
    (
        Gene("weight", low=-1.0, high=3.0),
        Gene("layers", "integer", low=1, high=4),
        Gene("method", "categorical", choices=("linear", "slerp", "ties")),
        Gene("rescale", "boolean"),
    )
)


def test_every_kind_of_gene_is_covered_evenly() -> None:
    strategy = RandomSearch(KINDS, MAXIMISE, seed=0)
    columns = list(zip(*(proposal.genome.values for proposal in strategy.ask(4000)), strict=True))
    weights = np.array(columns[0])
    # Means of 4000 uniform draws have standard errors below 0.02; the bounds are five of them.
    assert abs(weights.mean() - 1.0) < 0.1
    assert weights.min() < -0.98
    assert weights.max() > 2.98
    for column, values in zip(columns[1:], ((1, 2, 3, 4), ("linear", "slerp", "ties"), (False, True)), strict=True):
        counts = [column.count(value) for value in values]
        assert sum(counts) == 4000
        assert max(counts) - min(counts) < 250


def test_how_many_are_asked_at_a_time_does_not_matter() -> None:
    one, many = (RandomSearch(MIXED, MAXIMISE, seed=5) for _ in range(2))
    singles = [one.ask(1)[0] for _ in range(20)]
    assert singles == [*many.ask(13), *many.ask(7)]


def test_batch_is_the_natural_portion() -> None:
    assert len(RandomSearch(MIXED, MAXIMISE, seed=0, batch=5).ask()) == 5
    assert len(RandomSearch(MIXED, [Objective("a"), Objective("b", "minimize")], seed=0).ask()) == 16


@pytest.mark.parametrize(("given", "key"), [({"batch": 0, "seed": 0}, "strategy.batch"), ({"seed": -1}, "search.seed")])
def test_wrong_arguments_are_named(given: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        RandomSearch(MIXED, MAXIMISE, **given)

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from contracts.strategy_contract import StrategyContract
from contracts.strategy_player import MAXIMISE, MIXED, Make

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.strategies.quasi_random import QuasiRandom


class TestMixedQuasiRandom(StrategyContract):
    spec = MIXED

    @pytest.fixture
    def make(self) -> Make:
        return partial(QuasiRandom, batch=6)


def test_every_interval_and_every_choice_has_its_share() -> None:
    """A Sobol sequence: of the first 64 points, one in each of 64 intervals of every coordinate."""
    spec = GenomeSpec((Gene("w", low=-1.0, high=3.0), Gene("k", "integer", low=1, high=8), Gene("b", "boolean")))
    genomes = [proposal.genome.values for proposal in QuasiRandom(spec, MAXIMISE, seed=2).ask(64)]
    weights, numbers, flags = zip(*genomes, strict=True)
    assert sorted(np.floor((np.array(weights) + 1) * 16).astype(int)) == list(range(64))
    assert [numbers.count(k) for k in range(1, 9)] == [8] * 8
    assert flags.count(True) == 32


def test_too_many_genes_are_refused() -> None:
    spec = GenomeSpec(tuple(Gene(f"g{i}") for i in range(21_202)))
    with pytest.raises(ConfigError, match=r"21202 free genes.*at most 21201"):
        QuasiRandom(spec, MAXIMISE, seed=0)


@pytest.mark.parametrize(("given", "key"), [({"batch": 0, "seed": 0}, "strategy.batch"), ({"seed": -1}, "search.seed")])
def test_wrong_arguments_are_named(given: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        QuasiRandom(MIXED, MAXIMISE, **given)

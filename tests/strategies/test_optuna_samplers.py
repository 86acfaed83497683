from __future__ import annotations

from functools import partial

import pytest
from contracts.strategy_contract import MIXED, LearningContract, Make, StrategyContract

from evomerge.strategies.optuna_samplers import Gp, Nsga2, Nsga3, Tpe


class TestTpe(LearningContract):
    @pytest.fixture
    def make(self) -> Make:
        return Tpe


class TestMixedTpe(StrategyContract):
    spec = MIXED

    @pytest.fixture
    def make(self) -> Make:
        return Tpe


class TestNsga2(LearningContract):
    @pytest.fixture
    def make(self) -> Make:
        return partial(Nsga2, popsize=12)


class TestMixedNsga3(StrategyContract):
    spec = MIXED

    @pytest.fixture
    def make(self) -> Make:
        return partial(Nsga3, popsize=12)

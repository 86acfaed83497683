from __future__ import annotations

from functools import partial

import pytest
from contracts.strategy_contract import MIXED, LearningContract, Make

from evomerge.strategies.catcma import CatCma


class TestCatCma(LearningContract):
    @pytest.fixture
    def make(self) -> Make:
        return CatCma


class TestMixedCatCma(LearningContract):
    spec = MIXED

    @pytest.fixture
    def make(self) -> Make:
        return partial(CatCma, popsize=8)

from __future__ import annotations

from functools import partial
from typing import ClassVar

import pytest

pytest.importorskip("smac", reason="needs pip install 'evomerge[smac]'")

from contracts.strategy_contract import StrategyContract
from contracts.strategy_player import MIXED, Make

from evomerge.strategies.smac import Smac


class TestSmac(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"startup": 1, "batch": 1, "trees": 1, "candidates": 1}

    @pytest.fixture
    def make(self) -> Make:
        return partial(Smac, startup=6, batch=6, trees=3, candidates=50)  # a forest costs a twentieth of a second

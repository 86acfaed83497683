"""What strategies do not handle is refused with what to set in its place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.objectives import Objective
from evomerge.strategies.bases.capabilities import require


def test_several_objectives_for_a_strategy_of_one_name_the_ways_out() -> None:
    one: Any = SimpleNamespace(multi_objective=False, kinds=frozenset({"real"}))
    said = r"given 2 objectives \(kind, loss\); .*search.scalarise=weighted .*strategy=nsga2"
    with pytest.raises(ConfigError, match=said):
        require(one, "CMA-ES", SimpleNamespace(), [Objective("kind"), Objective("loss")], 0)  # type: ignore[arg-type]

"""What `auto` means for a fitness: fast ways on the search's own items, lm-eval's batches elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from evomerge.session.builders import fitness_from_config

OURS = "fitness.lm_eval_tasks.LmEvalFitness"


@pytest.mark.parametrize(
    ("given", "key", "exact", "expected"),
    [
        ({"forwards": "auto", "generation": "auto"}, "fitness", False, ("shared", "continuous")),
        ({"forwards": "auto", "generation": "auto"}, "held_out", False, ("exact", "stock")),
        ({"forwards": "auto", "generation": "auto"}, "fitness", True, ("exact", "stock")),
        ({"forwards": "exact", "generation": "auto"}, "fitness", False, ("exact", "stock")),
        ({"forwards": "shared", "generation": "auto"}, "fitness", True, ("shared", "stock")),
        ({"forwards": "exact", "generation": "continuous"}, "fitness", False, ("exact", "continuous")),
        ({"forwards": "auto"}, "fitness", False, ("shared", "stock")),  # of runs from before there was a choice
    ],
)
def test_auto(given: dict[str, Any], key: str, exact: bool, expected: tuple[str, str]) -> None:
    config: Any = SimpleNamespace(**{key: {"_target_": OURS, "tasks": [{"task": "one"}], **given}})
    fitness: Any = fitness_from_config(config, key, exact=exact, files=False)
    assert (fitness._forwards.mode, fitness._forwards.generation) == expected

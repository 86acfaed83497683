"""What a run is made of, built from its configuration."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.evaluation.direct import DirectEvaluator
from evomerge.evaluation.local import LocalEvaluator
from evomerge.session import settings


class OwnLocal(LocalEvaluator):
    """A user's: it evaluates in this process, as its parent does."""


class OwnDirect(DirectEvaluator):
    """A user's, of genomes that are the models."""


class Elsewhere:
    """A user's that says nothing: workers travel to where it evaluates."""


@pytest.mark.parametrize(
    ("evaluator", "built_from"),
    [(OwnLocal, "worker"), (OwnDirect, "fitnesses"), (Elsewhere, "shipped worker")],
)
def test_the_class_of_an_evaluator_says_what_it_is_built_from(evaluator: type, built_from: str) -> None:
    """Not the name of its module: a subclass of one's own is built as its parent is."""
    config: Any = type("Config", (), {"evaluator": {"_target_": f"{__name__}.{evaluator.__name__}"}})
    assert settings.built_from(config) == built_from

from __future__ import annotations

from typing import Any

import pytest
from contracts.fitness_contract import FitnessContract

from fitness.lm_eval_tasks import LmEvalFitness


class TestLmEvalContract(FitnessContract):
    """All four output types together."""

    @pytest.fixture
    def make(self, tasks: Any) -> Any:
        terms = [
            {"task": "choose", "metrics": {"acc": 1.0, "brier_score": 0.5}},
            {"task": "complete", "metrics": {"perplexity": {"transform": "log"}}},
            {"task": "read", "metrics": ["bits_per_byte"], "weight": 2.0},
            "write",
        ]
        return lambda: LmEvalFitness(terms, include_path=str(tasks.path))


class TestGenerationContract(FitnessContract):
    """Generation alone: only the texts show what the model says."""

    @pytest.fixture
    def make(self, tasks: Any) -> Any:
        config = {"task": "write", "metrics": "exact_match,word"}
        return lambda: LmEvalFitness([config], include_path=str(tasks.path))

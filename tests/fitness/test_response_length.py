from types import SimpleNamespace
from typing import Any

import pytest

from evomerge.errors import FitnessError
from evomerge.objectives import Objective
from fitness._lm_eval.response_length import response_lengths
from fitness.lm_eval_tasks import LmEvalFitness


def scorer(output_type: str, documents: list[list[list[str]]]) -> Any:
    """A task whose documents have instances with these responses."""
    task = SimpleNamespace(OUTPUT_TYPE=output_type)
    return SimpleNamespace(task=task, documents=[[SimpleNamespace(resps=r) for r in d] for d in documents])


def test_counts_the_tokens_of_every_documents_responses() -> None:
    scorers = {
        "sums": scorer("generate_until", [[["a b c"]], [["a", "a b c"]], [[""]]]),
        "choices": scorer("multiple_choice", [[["a"]]]),
    }
    lengths = response_lengths(scorers, lambda texts: [len(text.split()) for text in texts], None)
    assert list(lengths) == ["sums/response_length"]
    assert lengths["sums/response_length"].tolist() == [3.0, 2.0, 0.0]


def test_is_a_second_objective_that_is_minimised() -> None:
    assert LmEvalFitness(["x"], response_length=True).objectives == (
        Objective("score", "maximize"),
        Objective("response_length", "minimize"),
    )
    assert LmEvalFitness(["x"]).objectives == (Objective("score", "maximize"),)


def test_tasks_that_generate_nothing_have_no_length(monkeypatch: pytest.MonkeyPatch) -> None:
    fitness = LmEvalFitness(["x"], response_length=True)
    tasks = {"choices": SimpleNamespace(OUTPUT_TYPE="multiple_choice")}
    monkeypatch.setattr(fitness, "_loaded", lambda: SimpleNamespace(tasks=tasks, terms=()))
    with pytest.raises(FitnessError, match="no task generates responses: choices"):
        fitness.check()

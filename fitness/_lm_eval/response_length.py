"""How long generated responses are: an objective beside the score, as in Long-to-Short merging."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Part
from evomerge.errors import FitnessError
from fitness._lm_eval.terms import RESPONSE_LENGTH

if TYPE_CHECKING:
    from fitness._lm_eval.scoring import TaskScorer


def generates(task: Any) -> bool:
    """Whether an lm-eval task asks for generated responses."""
    return bool(getattr(task, "OUTPUT_TYPE", None) == "generate_until")


def require_responses(tasks: Mapping[str, Any]) -> None:
    """Raise `FitnessError` unless a task generates responses, whose length can be measured."""
    if not any(generates(task) for task in tasks.values()):
        raise FitnessError(
            f"{RESPONSE_LENGTH} is asked for, and no task generates responses: {', '.join(tasks)}",
            "tasks with output_type generate_until have a length",
            "leave fitness.response_length out",
        )


def require_generating(tasks: Mapping[str, Any]) -> None:
    """Raise `FitnessError` for tasks whose answers are not generated: lm-eval refuses them with ``enable_thinking``."""
    others = [name for name, task in tasks.items() if task.OUTPUT_TYPE in ("loglikelihood", "multiple_choice")]
    if others:
        raise FitnessError(
            f"enable_thinking is true, and answers are not generated in: {', '.join(others)}",
            "tasks with output_type generate_until",
            "leave it out, and give those that do chat_template_args: {enable_thinking: true}",
        )


def require_texts(tasks: Mapping[str, Any], thinking: bool | None, length: bool) -> None:
    """Raise `FitnessError` unless tasks generate what is asked for: thinking, responses whose length counts."""
    if thinking:
        require_generating(tasks)
    if length:
        require_responses(tasks)


def response_lengths(
    scorers: Mapping[str, TaskScorer], count: Callable[[Sequence[str]], list[int]], part: Part | None
) -> dict[str, NDArray[np.float64]]:
    """``task/response_length`` -> mean tokens of each document's responses, in document order; NaN where not asked.

    Args:
        scorers: by task, their responses as last generated.
        count: tokens of texts.
        part: what was asked; ``None`` for all.
    """
    found = {}
    for name, scorer in scorers.items():
        if not generates(scorer.task):
            continue
        lengths = np.full(len(scorer.documents), np.nan)
        for place in range(len(scorer.documents)) if part is None else part[name]:
            document = scorer.documents[place]
            responses = [str(response) for instance in document for response in instance.resps]
            lengths[place] = float(np.mean(count(responses)))
        found[f"{name}/{RESPONSE_LENGTH}"] = lengths
    return found


def add_response_lengths(
    scorers: Mapping[str, TaskScorer],
    count: Callable[[Sequence[str]], list[int]],
    part: Part | None,
    objectives: dict[str, float],
    metrics: dict[str, float],
) -> dict[str, NDArray[np.float64]]:
    """Add the mean length of responses to `objectives`, of each task to `metrics`; the length of each item by task."""
    lengths = response_lengths(scorers, count, part)
    metrics |= {name: float(np.nanmean(values)) for name, values in lengths.items()}
    objectives[RESPONSE_LENGTH] = float(np.nanmean(np.concatenate(list(lengths.values()))))
    return lengths

"""The prompts of a task's documents, without their targets: texts for fitnesses that need no labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from lm_eval.evaluator_utils import get_sample_size

from evomerge.errors import FitnessError
from fitness._documents import Document
from fitness._lm_eval.isolation import StockGenerators, quietly
from fitness._lm_eval.loading import load_tasks
from fitness._lm_eval.task_errors import said
from fitness._lm_eval.terms import parse_terms
from fitness._lm_eval.texts import documents
from fitness._lm_eval.time_limit import limited


def task_prompts(
    task: str | dict[str, Any], include_path: Sequence[str], limit: int | None, timeout: float | None
) -> tuple[list[str], list[Document]]:
    """What each document of a task asks, as the task's ``doc_to_text`` writes it, and what identifies the document.

    No few-shot examples, instructions or chat templates come before it.

    Args:
        task: a name, the path of a YAML, or a whole configuration; of a group all tasks, in order.
        include_path: folders with task YAMLs.
        limit: the first documents of each task.
        timeout: seconds, as of `LmEvalFitness`.

    Raises:
        FitnessError: an unknown task, or one whose documents cannot be read or ask no text.
    """
    generators, terms = StockGenerators(), parse_terms([task])
    with generators:
        loaded = load_tasks(terms, include_path, timeout)
    prompts: list[str] = []
    for name, each in loaded.tasks.items():
        reading = limited(name, timeout, "reading its documents")
        with copy.copy(generators), quietly(), said(f"the prompts of task {name!r} cannot be read"), reading:
            for number, document in each.doc_iterator(rank=0, limit=get_sample_size(each, limit), world_size=1):
                prompt = each.doc_to_text(document)
                if not isinstance(prompt, str) or not prompt.strip():
                    raise FitnessError(
                        f"document {number} of task {name!r} asks {str(prompt)[:60]!r}",
                        "a text of at least one word",
                        "tasks that score all of a text have no prompts: name the file of their texts",
                    )
                prompts.append(prompt)
    return prompts, documents(loaded, limit, generators)

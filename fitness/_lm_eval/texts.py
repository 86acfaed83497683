"""What the documents of tasks ask and what the right answer is, as text: for people, not for models."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from lm_eval.evaluator_utils import get_sample_size

from fitness._documents import Document, asked_hash, content_hash
from fitness._lm_eval.building import build_requests
from fitness._lm_eval.isolation import StockGenerators, quietly
from fitness._lm_eval.loading import TaskSet
from fitness._lm_eval.settings import BuildSettings
from fitness._lm_eval.task_errors import said
from fitness._lm_eval.time_limit import limited

MOST = 6000
"""Documents of all tasks together."""


def texts(
    tasks: TaskSet, most: int, generators: StockGenerators, unbuilt: tuple[Any, BuildSettings] | None
) -> dict[str, list[Mapping[str, str]]]:
    """The first documents of every task, in the order of its per-item scores.

    Args:
        tasks: as a fitness has them.
        most: texts of each task.
        generators: that the tasks were loaded under; they stay as they are.
        unbuilt: what their requests are built with; ``None`` where they are.
    """
    with copy.copy(generators):
        if unbuilt is not None:
            build_requests(tasks, *unbuilt)
        return _texts(tasks, most)


def _texts(tasks: TaskSet, most: int) -> dict[str, list[Mapping[str, str]]]:
    share = max(1, min(most, MOST // max(1, len(tasks.tasks))))
    found = {}
    for name, task in tasks.tasks.items():
        by_document: dict[int, list[Any]] = {}
        for instance in task.instances:
            by_document.setdefault(instance.doc_id, []).append(instance)
        with (
            quietly(),
            said(f"the items of task {name!r} cannot be written"),
            limited(name, tasks.timeout, "writing its items"),
        ):
            found[name] = [_text(task, instances) for _, instances in islice(sorted(by_document.items()), share)]
    return found


def documents(tasks: TaskSet, limit: float | None, generators: Any) -> list[Document]:
    """Every scored document, whatever its task is called: what the model is asked and scored on, by content.

    Descriptions, few-shot examples and chat templates, the order of choices and the spaces around texts do not
    matter; nor does, for `asked`, what the document holds besides, such as a number of its own.

    Args:
        tasks: loaded.
        limit: documents of each task, where its term has none of its own.
        generators: the global ones of the stock tool, as loading the tasks left them; they stay so.

    Raises:
        FitnessError: a task's documents cannot be read, or not be written as texts; names the task.
    """
    limits = {name: loaded.term.limit for loaded in tasks.terms for name in loaded.tasks}
    found: list[Document] = []
    for name, task in tasks.tasks.items():
        own = limits[name] if limits[name] is not None else limit
        given = f"the documents of task {name!r} cannot be read"
        reading = limited(name, tasks.timeout, "reading its documents")
        with copy.copy(generators), quietly(), said(given), reading:
            for _, document in task.doc_iterator(rank=0, limit=get_sample_size(task, own), world_size=1):
                found.append(Document(_asked(task, document), content_hash(document)))
    return found


def _asked(task: Any, document: Any) -> str:
    """The hash of the question, the choices in an order of their own, and the target in words."""
    choices = task.doc_to_choice(document) if task.get_config("doc_to_choice") is not None else None
    question = words(task.doc_to_text(document), choices)  # a number where the choices are the questions
    if getattr(task, "MULTIMODAL", False):
        question += content_hash(task.doc_to_image(document))
    return asked_hash(question, choices or (), words(task.doc_to_target(document), choices))


def _text(task: Any, instances: Sequence[Any]) -> Mapping[str, str]:
    """What the model read of a document, instruction, template and examples included, and the target in words."""
    document = instances[0].doc
    target = task.doc_to_target(document)
    choices = task.doc_to_choice(document) if task.get_config("doc_to_choice") is not None else None
    if instances[0].request_type == "loglikelihood_rolling":  # all of the text is the target
        return {"prompt": str(task.doc_to_text(document)), "target": words(target, choices)}
    # One, or as many as choices where these are prompts, as in Winogrande; mutual information has empty ones besides.
    prompts = dict.fromkeys(str(instance.args[0]) for instance in instances if instance.args[0])
    return {"prompt": "\n".join(prompts), "target": words(target, choices)}


def words(target: Any, choices: Sequence[Any] | None) -> str:
    """A target, or a question, as text: a number is that of a choice."""
    if isinstance(target, list | tuple):
        return ", ".join(words(entry, choices) for entry in target)
    if isinstance(target, int) and choices and 0 <= target < len(choices):
        return str(choices[target])
    return str(target)

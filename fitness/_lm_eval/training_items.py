"""Documents of tasks as texts with their right answers, to learn from and not to be scored on."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from evomerge.errors import FitnessError
from evomerge.protocols import CalibrationItem
from fitness._documents import Document, asked_hash, content_hash
from fitness._lm_eval.isolation import quietly
from fitness._lm_eval.loading import TaskSet
from fitness._lm_eval.task_errors import said
from fitness._lm_eval.texts import words
from fitness._lm_eval.time_limit import limited

_HAS = {"train": "has_training_docs", "validation": "has_validation_docs"}
_DOCUMENTS = {"train": "training_docs", "validation": "validation_docs"}


def require_split(tasks: TaskSet, split: str) -> None:
    """`FitnessError` for a task without documents of a split."""
    for name, task in tasks.tasks.items():
        if split in _HAS and not getattr(task, _HAS[split])():
            others = [own for own, has in _HAS.items() if getattr(task, has)()]
            raise FitnessError(
                f"task {name!r} has no {split} documents",
                f"it has {', '.join([*others, 'scored'])} documents",
                "choose others with split, or texts from files: calibration=text",
            )


def task_items(tasks: TaskSet, name: str, split: str, generators: Any) -> list[tuple[CalibrationItem, Document]]:
    """Every document of a task's split with its right answer.

    Args:
        tasks: loaded.
        name: of the task.
        split: ``train``, ``validation`` or ``scored``.
        generators: the global ones of the stock tool, which stay as loading the tasks left them.

    Raises:
        FitnessError: the documents cannot be read, or not be written as texts.
    """
    task = tasks.tasks[name]
    reading = limited(name, tasks.timeout, "reading its documents")
    with copy.copy(generators), quietly(), said(f"the documents of task {name!r} cannot be read"), reading:
        found: Iterable[Any] = getattr(task, _DOCUMENTS[split])() if split in _DOCUMENTS else task.eval_docs
        return [_item(task, document) for document in found]


def _item(task: Any, document: Any) -> tuple[CalibrationItem, Document]:
    choices = task.doc_to_choice(document) if task.get_config("doc_to_choice") is not None else None
    question, target = words(task.doc_to_text(document), choices), words(task.doc_to_target(document), choices)
    # lm-eval puts no delimiter before a target whose log-likelihood alone is scored.
    between = "" if task.OUTPUT_TYPE.startswith("loglikelihood") else str(task.get_config("target_delimiter") or "")
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        question, between, target = target, "", ""
    own = Document(asked_hash(question, choices or (), target), content_hash(document))
    return CalibrationItem(question, f"{between}{target}" if target else ""), own

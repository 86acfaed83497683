"""What the documents of tasks ask and what the right answer is, as text: for people, not for models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from lm_eval.evaluator_utils import get_sample_size

from fitness._lm_eval.isolation import quietly
from fitness._lm_eval.loading import TaskSet, said
from fitness._lm_eval.time_limit import limited

MOST = 6000
"""Documents of all tasks together."""


def texts(tasks: TaskSet, limit: float | None, most: int) -> dict[str, list[Mapping[str, str]]]:
    """The first documents of every task, in the order of its per-item scores.

    Args:
        tasks: loaded.
        limit: documents of a task whose term does not say.
        most: texts of each task.
    """
    limits = {name: loaded.term.limit for loaded in tasks.terms for name in loaded.tasks}
    share = max(1, min(most, MOST // max(1, len(tasks.tasks))))
    found = {}
    for name, task in tasks.tasks.items():
        own = limits[name] if limits[name] is not None else limit
        with (
            quietly(),
            said(f"the items of task {name!r} cannot be written"),
            limited(name, tasks.timeout, "writing its items"),
        ):
            documents = task.doc_iterator(rank=0, limit=get_sample_size(task, own), world_size=1)
            found[name] = [_text(task, document) for _, document in islice(documents, share)]
    return found


def documents(tasks: TaskSet, limit: float | None) -> frozenset[str]:
    """A hash of the content of each scored document, whatever its task is called and however its prompt is written.

    Raises:
        FitnessError: a task's documents cannot be read; names the task.
    """
    limits = {name: loaded.term.limit for loaded in tasks.terms for name in loaded.tasks}
    found = set[str]()
    for name, task in tasks.tasks.items():
        own = limits[name] if limits[name] is not None else limit
        given = f"the documents of task {name!r} cannot be read"
        with quietly(), said(given), limited(name, tasks.timeout, "reading its documents"):
            for _, document in task.doc_iterator(rank=0, limit=get_sample_size(task, own), world_size=1):
                content = json.dumps(document, sort_keys=True, default=str)
                found.add(hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest())
    return frozenset(found)


def _text(task: Any, document: Any) -> Mapping[str, str]:
    """A prompt without examples, and the target; of a choice its words."""
    prompt, target = task.doc_to_text(document), task.doc_to_target(document)
    choices = task.doc_to_choice(document) if task.get_config("doc_to_choice") is not None else None
    if isinstance(prompt, int) and choices:  # the choices are prompts, as in Winogrande
        prompt = "\n".join(map(str, choices))
    return {"prompt": str(prompt), "target": _words(target, choices)}


def _words(target: Any, choices: Sequence[Any] | None) -> str:
    if isinstance(target, list | tuple):
        return ", ".join(_words(entry, choices) for entry in target)
    if isinstance(target, int) and choices and 0 <= target < len(choices):
        return str(choices[target])
    return str(target)

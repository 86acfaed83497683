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


def texts(tasks: TaskSet, most: int) -> dict[str, list[Mapping[str, str]]]:
    """The first documents of every task, in the order of its per-item scores.

    Args:
        tasks: their requests are built.
        most: texts of each task.
    """
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


def _text(task: Any, instances: Sequence[Any]) -> Mapping[str, str]:
    """What the model read of a document, instruction, template and examples included, and the target in words."""
    document = instances[0].doc
    target = task.doc_to_target(document)
    choices = task.doc_to_choice(document) if task.get_config("doc_to_choice") is not None else None
    if instances[0].request_type == "loglikelihood_rolling":  # all of the text is the target
        return {"prompt": str(task.doc_to_text(document)), "target": _words(target, choices)}
    # One, or as many as choices where these are prompts, as in Winogrande; mutual information has empty ones besides.
    prompts = dict.fromkeys(str(instance.args[0]) for instance in instances if instance.args[0])
    return {"prompt": "\n".join(prompts), "target": _words(target, choices)}


def _words(target: Any, choices: Sequence[Any] | None) -> str:
    if isinstance(target, list | tuple):
        return ", ".join(_words(entry, choices) for entry in target)
    if isinstance(target, int) and choices and 0 <= target < len(choices):
        return str(choices[target])
    return str(target)

"""What makes a search on these tasks hard to trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fitness._lm_eval.generation_arguments import unused_arguments
from fitness._lm_eval.loading import TaskSet, scored_split
from fitness._lm_eval.task_errors import said


def cautions(tasks: TaskSet, num_fewshot: int | None, gen_kwargs: Mapping[str, Any]) -> list[str]:
    """A line for every task whose few-shot examples are items, and for every benchmark that is judged by them.

    Another for arguments of generation that no task uses.
    """
    with said("the tasks' few-shot examples cannot be looked at"):
        given_away = [
            f"few-shot examples of {name} are drawn from the items that are scored: a prompt may hold its own answer; "
            "name another split with fewshot_split in the task's YAML"
            for name in own_examples(tasks, num_fewshot)
        ]
    unused = unused_arguments(tasks, gen_kwargs)
    return (
        [unused] * bool(unused)
        + given_away
        + [
            f"{name} is a public benchmark, and these are the items it is judged by: what wins here is fitted to them; "
            "search on other items and keep these for held_out"
            for name in tasks.benchmarks
        ]
    )


def own_examples(tasks: TaskSet, num_fewshot: int | None) -> list[str]:
    """The tasks whose few-shot examples are drawn from the documents that are scored."""
    wanted = {name: loaded.term.num_fewshot for loaded in tasks.terms for name in loaded.tasks}
    found = []
    for name, task in tasks.tasks.items():
        own = wanted[name] if wanted[name] is not None else num_fewshot
        examples = own if own is not None else task.get_config("num_fewshot")
        given = getattr(task.config, "fewshot_config", None) or {}
        listed = isinstance(given, Mapping) and isinstance(given.get("samples"), list | tuple)
        if examples and not listed and _examples_split(task) == scored_split(task):
            found.append(name)
    return found


def _examples_split(task: Any) -> str:
    """Where lm-eval draws examples from: the split that the task names, else training, validation, test."""
    named = getattr(task.config, "fewshot_split", None)
    if named:
        return str(named)
    if task.has_training_docs():
        return str(task.config.training_split)
    return str(task.config.validation_split if task.has_validation_docs() else task.config.test_split)

"""Arguments of generation, checked when tasks are loaded: what a model would stumble over, with the key of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import FitnessError
from fitness._lm_eval.loading import LoadedTerm, TaskSet

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of how many tokens are written at most; the first that is given counts."""


def check_generation(tasks: TaskSet, gen_kwargs: Mapping[str, Any]) -> None:
    """Check what generative tasks are told of stop strings, lengths and sampling.

    Args:
        tasks: loaded.
        gen_kwargs: of all tasks; those of a term go before, and both before a task's own.

    Raises:
        FitnessError: names the key, and the task where it is that one's.
    """
    for term in tasks.terms:
        for name in term.tasks:
            task = tasks.tasks[name]
            if task.OUTPUT_TYPE != "generate_until":
                continue
            own = task.get_config("generation_kwargs") or {}
            given = {**own, **gen_kwargs, **term.term.gen_kwargs}
            for key, value in given.items():
                allowed = _allowed(key, value)
                if allowed:
                    where = _where(key, name, term, gen_kwargs)
                    raise FitnessError(f"{where} is {repr(value)[:80]}", allowed, _DO)


_DO = "mend it there; keys that are set in gen_kwargs go before those of a task's YAML"


def _where(key: str, task: str, term: LoadedTerm, gen_kwargs: Mapping[str, Any]) -> str:
    if key in term.term.gen_kwargs:
        return f"{key} in the gen_kwargs of task {task!r}"
    return f"gen_kwargs.{key}" if key in gen_kwargs else f"task {task!r}: generation_kwargs.{key} of its YAML"


def _allowed(key: str, value: Any) -> str:
    """What would have been taken; empty where the value is."""
    if key == "until":
        several = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        return "" if all(isinstance(text, str) for text in several) else _UNTIL
    if key in LENGTHS:
        return "" if value is None or (_number(value) and 1 <= value < math.inf and value == int(value)) else _LENGTH
    if key == "temperature":
        return "" if _number(value) and 0 <= value < math.inf else "a number, 0 or more"
    if key == "do_sample":
        return "" if value is None or isinstance(value, bool) else "true or false"
    return ""


_UNTIL = "a text that ends a response, or a list of them; [] for none"
_LENGTH = "how many tokens a response has at most: a whole number, 1 or more"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""Arguments of generation, checked when tasks are loaded: what a model would stumble over, with the key of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import FitnessError
from fitness._lm_eval.generation_names import LENGTHS, mistyped
from fitness._lm_eval.loading import LoadedTerm, TaskSet


def check_generation(tasks: TaskSet, gen_kwargs: Mapping[str, Any]) -> None:
    """Check what generative tasks are told of stop strings, lengths and sampling, and the names of it.

    Args:
        tasks: loaded.
        gen_kwargs: of all tasks; those of a term go before, and both before a task's own.

    Raises:
        FitnessError: names the key, and the task where it is that one's.
    """
    names = _of_transformers()
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
                if meant := mistyped(str(key), names):
                    raise FitnessError(f"there is no {_where(key, name, term, gen_kwargs)}", meant, _DO)


def _of_transformers() -> set[str]:
    """Names that transformers' generation takes, but for those that only a model's own code has."""
    from transformers import GenerationConfig
    from transformers.generation.utils import GenerationMixin

    return {*vars(GenerationConfig()), *inspect.signature(GenerationMixin.generate).parameters}


def unused_arguments(tasks: TaskSet, gen_kwargs: Mapping[str, Any]) -> str:
    """A line for arguments of generation that no task uses; empty where they are, or there are none."""

    def generates(term: LoadedTerm) -> bool:
        return any(tasks.tasks[name].OUTPUT_TYPE == "generate_until" for name in term.tasks)

    given = [] if any(map(generates, tasks.terms)) else [f"gen_kwargs.{key}" for key in gen_kwargs]
    for term in tasks.terms:
        if not generates(term):
            given += [f"{key} in the gen_kwargs of task {term.name!r}" for key in term.term.gen_kwargs]
    return f"not used, since nothing is generated: {', '.join(given)}" if given else ""


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
    if key in _COUNTS:
        least = _COUNTS[key]
        return "" if value is None or (type(value) is int and value >= least) else f"a whole number, {least} or more"
    if key in ("top_p", "min_p"):
        return "" if value is None or (_number(value) and 0 <= value <= 1) else "a number from 0 to 1"
    if key == "repetition_penalty":
        return "" if value is None or (_number(value) and 0 < value < math.inf) else "a number above 0"
    if key == "do_sample":
        return "" if value is None or isinstance(value, bool) else "true or false"
    return ""


_COUNTS = {"num_beams": 1, "top_k": 0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
_UNTIL = "a text that ends a response, or a list of them; [] for none"
_LENGTH = "how many tokens a response has at most: a whole number, 1 or more"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""Builds the requests of loaded tasks as the stock tool would, and hashes what they are."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.evaluator_utils import get_sample_size

from evomerge.errors import FitnessError
from fitness._lm_eval.isolation import quietly
from fitness._lm_eval.loading import TaskSet
from fitness._lm_eval.scoring import forget_renderings
from fitness._lm_eval.terms import TaskTerm
from fitness._lm_eval.time_limit import limited, timed

_NOT_CONTENT = {"metadata", "dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "task_alias", "tag"}


@dataclass(frozen=True)
class BuildSettings:
    """How prompts are made, for all tasks; terms may override some. Named as in ``lm_eval``."""

    num_fewshot: int | None
    limit: int | float | None
    apply_chat_template: bool
    fewshot_as_multiturn: bool
    system_instruction: str | None
    gen_kwargs: Mapping[str, Any]
    fewshot_seed: int


def build_requests(tasks: TaskSet, lm: Any, settings: BuildSettings) -> None:
    """Give every task its instances, with the steps and the order of ``simple_evaluate``.

    The few-shot generators are set anew, so that building again gives the same prompts.

    Raises:
        FitnessError: a task whose prompts cannot be made, or without documents.
    """
    terms = {name: loaded.term for loaded in tasks.terms for name in loaded.tasks}
    for name, task in tasks.tasks.items():
        forget_renderings(task)
        _configure(task, terms[name], settings)
        task.set_fewshot_seed(seed=settings.fewshot_seed)
    if settings.apply_chat_template and not getattr(lm.tokenizer, "chat_template", None):
        raise FitnessError("apply_chat_template is set", "a tokenizer with a chat template; this one has none")
    chat_template = _timed(lm.apply_chat_template) if settings.apply_chat_template else None
    for name, task in tasks.tasks.items():
        limit = terms[name].limit if terms[name].limit is not None else settings.limit
        try:
            with quietly(), limited(name, tasks.timeout, "building its items"):
                task.build_all_requests(
                    limit=get_sample_size(task, limit),
                    rank=0,
                    world_size=1,
                    system_instruction=settings.system_instruction,
                    apply_chat_template=settings.apply_chat_template,
                    fewshot_as_multiturn=settings.fewshot_as_multiturn,
                    chat_template=chat_template,
                )
        except FitnessError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise FitnessError(f"the prompts of task {name!r} cannot be built: {reason}") from error


def _timed(render: Callable[..., str]) -> Callable[..., str]:
    """A chat template as one of the task's own: it comes with a model."""

    @functools.wraps(render)
    def rendered(*args: Any, **kwargs: Any) -> str:
        with timed():
            return render(*args, **kwargs)

    return rendered


def _configure(task: Any, term: TaskTerm, settings: BuildSettings) -> None:
    if task.get_config("output_type") == "generate_until":
        arguments = {**settings.gen_kwargs, **term.gen_kwargs}
        if arguments:
            task.set_config(key="generation_kwargs", value=arguments, update=True)
    own = task.get_config("num_fewshot")
    if term.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=term.num_fewshot)
    elif settings.num_fewshot is not None and own != 0:  # a task that says 0 means it
        task.set_config(key="num_fewshot", value=settings.num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)


def fingerprint(tasks: TaskSet, requests: Mapping[int, Sequence[Any]], settings: Mapping[str, Any]) -> str:
    """``sha256:`` over prompts, documents, tokens, task configurations and `settings`.

    Where data lie on disk does not matter, what they hold does.

    Args:
        requests: token requests by identity of the instance.
        settings: everything else that decides a score.
    """
    digest = hashlib.sha256()
    versions = {name: importlib.metadata.version(name) for name in ("lm_eval", "transformers", "torch", "tokenizers")}
    _add(digest, {"versions": versions, "settings": settings})
    for name, task in tasks.tasks.items():
        config = {key: value for key, value in vars(task.config).items() if key not in _NOT_CONTENT}
        _add(digest, {"task": name, "version": task.VERSION, "config": config})
        for instance in task.instances:
            tokens = [(list(r.context), list(r.continuation)) for r in requests.get(id(instance), ())]
            _add(digest, [instance.doc_id, instance.idx, instance.arguments, instance.doc, tokens])
    return f"sha256:{digest.hexdigest()}"


def _add(digest: Any, value: Any) -> None:
    digest.update(json.dumps(_content(value), sort_keys=True, ensure_ascii=False).encode())
    digest.update(b"\n")


def _content(value: Any) -> Any:
    """`value` as JSON that does not depend on addresses: functions by their source, unknown objects by their type."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _content(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_content(inner) for inner in (sorted(value, key=repr) if isinstance(value, set | frozenset) else value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _content(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return getattr(value, "__qualname__", type(value).__qualname__)
    text = str(value)
    return type(value).__qualname__ if " at 0x" in text else text

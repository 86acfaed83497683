"""Builds the requests of loaded tasks as the stock tool would, and hashes what they are."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.evaluator_utils import get_sample_size

from evomerge.errors import FitnessError
from fitness._lm_eval.chat import ChatTemplate, require_template
from fitness._lm_eval.document_errors import require_text
from fitness._lm_eval.isolation import quietly
from fitness._lm_eval.loading import TaskSet
from fitness._lm_eval.scoring import forget_renderings
from fitness._lm_eval.settings import BuildSettings
from fitness._lm_eval.task_errors import building_document, said_of_document
from fitness._lm_eval.terms import TaskTerm
from fitness._lm_eval.time_limit import limited

PROMPT_PARTS = "doc_to_text, doc_to_target, doc_to_choice and fewshot_config"
"""Keys of a task's YAML that prompts are made by."""

_NOT_CONTENT = {"metadata", "dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "task_alias", "tag"}


def build_requests(
    tasks: TaskSet,
    tokenizer: Any,
    settings: BuildSettings,
    samples: Mapping[str, list[int]] | None = None,
    seeing: Any = None,
) -> None:
    """Give every task its instances, with the steps and the order of ``simple_evaluate``.

    The few-shot generators are set anew, so that building again gives the same prompts.

    Args:
        tasks: loaded.
        tokenizer: whose chat template is used; of no matter where no task uses one.
        settings: those of the fitness.
        samples: numbers of the documents by task; all within the limit for ``None``.
        seeing: lm-eval's model of texts and images, which writes chats itself; ``None`` without images.

    Raises:
        FitnessError: a task whose prompts cannot be made or are no text, or without documents.
    """
    terms = {name: loaded.term for loaded in tasks.terms for name in loaded.tasks}
    for name, task in tasks.tasks.items():
        forget_renderings(task)
        _configure(task, terms[name], settings)
        task.set_fewshot_seed(seed=settings.fewshot_seed)
    require_templates(tasks, tokenizer, settings, getattr(seeing, "processor", None))
    if seeing is not None:
        _require_one_way(tasks, settings)
    for name, task in tasks.tasks.items():
        limit = terms[name].limit if terms[name].limit is not None else settings.limit
        own = settings.of(terms[name])
        choice = own.apply_chat_template
        broken = said_of_document(name, "its prompt cannot be built", PROMPT_PARTS, building_document)
        with broken, quietly(), limited(name, tasks.timeout, "building its items"):
            task.build_all_requests(
                limit=get_sample_size(task, limit),
                samples=samples[name] if samples is not None else None,
                rank=0,
                world_size=1,
                system_instruction=own.system_instruction,
                apply_chat_template=bool(choice),
                fewshot_as_multiturn=own.fewshot_as_multiturn,
                chat_template=_template(tokenizer, task, choice, own.chat_template_args, seeing) if choice else None,
            )
        for instance in task.instances:
            require_text(instance)


def _template(tokenizer: Any, task: Any, choice: bool | str, arguments: Mapping[str, Any], seeing: Any) -> Any:
    """What writes the chats of a task."""
    if seeing is not None and getattr(task, "MULTIMODAL", False):
        return seeing.apply_chat_template
    return ChatTemplate(tokenizer, choice, arguments)


def _require_one_way(tasks: TaskSet, settings: BuildSettings) -> None:
    """Raise `FitnessError` where some tasks with images are chats and others are not, or a template is named.

    lm-eval's ``hf-multimodal`` puts image tokens into all prompts or leaves them to the template for all.
    """
    asked = {}
    for loaded in tasks.terms:
        if any(getattr(tasks.tasks[name], "MULTIMODAL", False) for name in loaded.tasks):
            own = settings.of(loaded.term)
            asked[loaded.name] = bool(own.apply_chat_template)
            if isinstance(own.apply_chat_template, str) or own.chat_template_args:
                raise FitnessError(
                    f"task {loaded.name!r} has images, and a chat template is named or given arguments",
                    "apply_chat_template: true or false: lm-eval takes the processor's template as it is",
                )
    if len(set(asked.values())) > 1:
        told = ", ".join(f"{name} {str(value).lower()}" for name, value in asked.items())
        raise FitnessError(f"apply_chat_template differs between tasks with images: {told}", "the same for all of them")


def require_templates(tasks: TaskSet, tokenizer: Any, settings: BuildSettings, processor: Any = None) -> None:
    """Raise `FitnessError` unless the tokenizer has every chat template that a task asks for, naming the task.

    Of tasks with images that is the processor's; without one they are passed over.
    """
    for loaded in tasks.terms:
        choice = settings.of(loaded.term).apply_chat_template
        whose = "" if loaded.term.apply_chat_template is None else f" of task {loaded.name!r}"
        images = any(getattr(tasks.tasks[name], "MULTIMODAL", False) for name in loaded.tasks)
        if choice and (processor is not None or not images):
            require_template(processor if images else tokenizer, choice, f"apply_chat_template{whose}")


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


def changed_prompts(tasks: TaskSet, tokenizer: Any, settings: BuildSettings) -> dict[str, Any]:
    """What terms say of how prompts are made, for a fingerprint; empty where they say nothing."""
    said: dict[str, Any] = {}
    for loaded in tasks.terms:
        own = loaded.term.prompts | ({"arguments": args} if (args := loaded.term.chat_template_args) else {})
        if own:
            said[loaded.name] = own
            if own.get("apply_chat_template") and not settings.apply_chat_template:
                said[loaded.name]["chat_template"] = tokenizer.chat_template
    return {"task_prompts": said} if said else {}


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
    if callable(getattr(value, "tobytes", None)) and hasattr(value, "mode"):  # an image
        return [value.mode, list(value.size), hashlib.sha256(value.tobytes()).hexdigest()]
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return getattr(value, "__qualname__", type(value).__qualname__)
    text = str(value)
    return type(value).__qualname__ if " at 0x" in text else text

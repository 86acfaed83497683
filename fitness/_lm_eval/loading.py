"""Finds and loads lm-eval tasks: by registered name, by YAML path, or from a whole configuration."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from evomerge.errors import FitnessError, nearest
from fitness._lm_eval.isolation import quietly, sandbox_templates
from fitness._lm_eval.repeated_keys import refuse_repeated_keys, refuse_special_includes
from fitness._lm_eval.task_errors import own_place, reason, said
from fitness._lm_eval.task_files import check_files, relative_to
from fitness._lm_eval.terms import TaskTerm
from fitness._lm_eval.time_limit import limited
from fitness._lm_eval.yaml_faults import data_files, require_metrics, yaml_fault

_log = logging.getLogger(__name__)

_PACKAGED_READERS = {"json", "csv", "text", "parquet", "arrow", "pandas", "xml"}


@dataclass
class LoadedTerm:
    """A term with what it names.

    Attributes:
        name: as lm-eval prints it.
        tasks: its tasks: one, or the leaves of a group or tag.
    """

    term: TaskTerm
    name: str
    tasks: tuple[str, ...]


@dataclass
class TaskSet:
    """All tasks of a fitness, by name in the order asked, with the groups they came from."""

    terms: list[LoadedTerm] = field(default_factory=list)
    tasks: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    benchmarks: list[str] = field(default_factory=list)
    """The tasks that lm-eval itself brings and that score another split than the training split."""
    timeout: float | None = None
    """Seconds that a task's templates and regular expressions may take at each stage, for `time_limit.limited`."""


def load_tasks(terms: Sequence[TaskTerm], include_path: Sequence[str], timeout: float | None = None) -> TaskSet:
    """Load every task of `terms` with its documents; `timeout` as in the `TaskSet`.

    lm-eval's own index of 14,000 entries takes many seconds to read: it is read only when a name is found
    neither in `include_path` nor as a file.

    Raises:
        FitnessError: an unknown task, a missing YAML or data file, a YAML that cannot be read, a task named twice.
    """
    sandbox_templates()
    check_files(terms, include_path)
    for folder in include_path:
        refuse_special_includes(Path(folder))
    manager = _manager(terms, include_path)
    loaded = TaskSet(timeout=timeout)
    for term in terms:
        config = _require_sound(term, manager)
        try:
            with quietly(), limited(term.label, timeout, "loading it"):
                found = manager.load([term.source])
        except FitnessError:
            raise
        except Exception as error:
            fault = yaml_fault(config, term.label, error)
            if fault is not None:
                raise fault from error
            place = own_place(error)
            do = f"look at {place}" if place else "lm-eval reads its YAML and data, and renders its first document"
            raise FitnessError(f"task {term.label!r} cannot be loaded: {reason(error)}", "", do) from error
        for name, task in found["tasks"].items():
            if name in loaded.tasks:
                raise FitnessError(f"task {name!r} is named twice", "each task once", "give one of them another name")
            _require_supported(name, task)
            loaded.tasks[name] = task
            if _is_built_in(name, manager) and not scored_split(task).startswith("train"):
                loaded.benchmarks.append(name)
        groups = found.get("groups", {})
        loaded.groups.update(groups)
        leaves = tuple(found["tasks"])
        name = next(iter(groups), leaves[0] if len(leaves) == 1 else term.label)
        loaded.terms.append(LoadedTerm(term, name, leaves))
    return loaded


def _manager(terms: Sequence[TaskTerm], include_path: Sequence[str]) -> Any:
    """The smallest task index that knows every named task."""
    with said(f"the task files in {', '.join(include_path)} cannot be indexed"):
        own = TaskManager(include_path=list(include_path) or None, include_defaults=False)
    missing = [term for term in terms if not _resolves(term, own)]
    if not missing:
        return own
    _log.info("reading lm-eval's index of built-in tasks for %s", ", ".join(term.label for term in missing))
    full = TaskManager(include_path=list(include_path) or None)
    for term in missing:
        if not _resolves(term, full):
            broken = _unreadable(include_path)
            raise FitnessError(
                f"task {term.label!r} is unknown",
                nearest(term.label, full.all_tasks) + (f"; unreadable: {'; '.join(broken)}" if broken else ""),
                "" if include_path else "name the folder of your own task YAMLs with include_path",
            )
    return full


def _resolves(term: TaskTerm, manager: Any) -> bool:
    if not isinstance(term.source, str):
        return True
    entry = manager.task_index.get(term.source)
    if entry is None:
        return Path(term.source).expanduser().is_file()
    members = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else None
    return all(name in manager.task_index for name in _references(members or []))


def _references(members: Iterable[Any]) -> Iterable[str]:
    """Names of registered tasks among the members of a group (inline definitions bring their own dataset)."""
    for member in members if isinstance(members, list) else []:
        if isinstance(member, str):
            yield member
        elif isinstance(member, Mapping) and isinstance(member.get("task"), str) and "dataset_path" not in member:
            yield member["task"]


def _require_sound(term: TaskTerm, manager: Any) -> Mapping[str, Any]:
    """Raise `FitnessError` for what would fail obscurely inside lm-eval: YAML errors and missing data files.

    Returns:
        The configuration of the task or group; an empty one of a tag.
    """
    if isinstance(term.source, dict):
        _require_data(term.source, None, term.label)
        return term.source
    entry = manager.task_index.get(term.source)
    path = entry.yaml_path if entry is not None else Path(term.source).expanduser()
    if path is None:  # a tag has no YAML of its own
        return {}
    try:
        refuse_repeated_keys(Path(path))
        config = load_yaml(path, resolve_func=False)
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise FitnessError(f"task file {path} cannot be read: {reason(error)}") from error
    if "task" not in config and "group" not in config:
        raise FitnessError(f"task file {path} names no task", "a mapping with the key 'task'")
    if not isinstance(config.get("task", config.get("group")), str | list if "group" in config else str):
        raise FitnessError(f"task file {path} calls its task {str(config.get('task'))[:80]!r}", "a name: text")
    _require_data(config, path, term.label)
    return dict(config)


def _require_data(config: Mapping[str, Any], path: Path | None, label: str) -> None:
    arguments = config.get("dataset_kwargs")
    if str(config.get("dataset_path")) not in _PACKAGED_READERS or config.get("custom_dataset") is not None:
        return
    given = arguments if isinstance(arguments, Mapping) else {}
    if not (
        given.get("data_files") or given.get("data_dir") or "include" in config
    ):  # all files below the current folder would be read
        raise FitnessError(
            f"task {label!r} reads {config['dataset_path']} files and does not say which",
            "dataset_kwargs: {data_files: {test: FILE}}",
        )
    arguments, files = given, given.get("data_files")
    for file in data_files(files):
        if "://" in file:
            continue
        base = Path(str(arguments.get("data_dir") or "."))
        if glob.glob(str(base / file)):
            continue
        beside = str(path.parent / file) if path is not None else ""
        hint = f"write an absolute path; {beside} exists" if os.path.exists(beside) else ""
        raise FitnessError(f"task {label!r} reads {file[:200]!r}, which does not exist", relative_to(file), hint)
    split = config.get("test_split") or config.get("validation_split")
    if files and not isinstance(files, Mapping) and split not in (None, "train"):
        raise FitnessError(
            f"task {label!r} scores the split {split!r} of data_files without splits",
            "lm-eval calls such files 'train'",
            f"write data_files: {{{split}: ...}}",
        )


def _is_built_in(name: str, manager: Any) -> bool:
    entry = manager.task_index.get(name)
    path = getattr(entry, "yaml_path", None)
    return path is not None and Path(lm_eval.__file__).parent in Path(path).parents


def has_images(tasks: TaskSet) -> bool:
    """Whether some task asks of images."""
    return any(getattr(task, "MULTIMODAL", False) for task in tasks.tasks.values())


def scored_split(task: Any) -> str:
    """The split whose documents are scored."""
    return str(getattr(task.config, "test_split" if task.has_test_docs() else "validation_split", None) or "")


def _require_supported(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise FitnessError(f"task {name!r} runs code that a model wrote", "tasks that do not")
    own = type(task).doc_to_choice is not ConfigurableTask.doc_to_choice or getattr(task, "prompt", None) is not None
    if not own and (task.OUTPUT_TYPE, task.config.doc_to_choice) == ("multiple_choice", None):
        raise FitnessError(
            f"task {name!r} has output_type multiple_choice and no doc_to_choice",
            "the answers that are compared: a field of the documents, a template or a list",
            "set doc_to_choice in the task's YAML",
        )
    for key, least in (("num_fewshot", 0), ("repeats", 1)):
        count = getattr(task.config, key, None)
        if count is not None and (type(count) is not int or count < least):
            raise FitnessError(f"task {name!r} has {key} {count!r}", f"a whole number, {least} or more")
    require_metrics(name, task)
    if getattr(task, "MULTIMODAL", False):
        if getattr(task.config, "doc_to_audio", None) is not None:
            raise FitnessError(f"task {name!r} needs sound", "tasks of texts and images")
        _require_columns_of_images(name, task)
        if task.OUTPUT_TYPE != "generate_until":
            raise FitnessError(
                f"task {name!r} has images and output_type {task.OUTPUT_TYPE}",
                "generate_until: lm-eval has no log-likelihoods of texts after images",
                "let the model write the letter of its choice, and filter it out of the text",
            )


def _require_columns_of_images(name: str, task: Any) -> None:
    """Refuse a name in ``doc_to_image`` that no column has: lm-eval would read it as a Python value, and fail late."""
    asked, columns = task.config.doc_to_image, [str(own) for own in getattr(task, "features", ())]
    for own in asked if isinstance(asked, list) else [asked]:
        if isinstance(own, str) and own.isidentifier() and own != "None" and own not in columns:
            raise FitnessError(
                f"task {name!r} has doc_to_image {own!r}, which no column of its documents is called",
                nearest(own, columns),
                "set doc_to_image in the task's YAML",
            )


def _unreadable(include_path: Sequence[str]) -> list[str]:
    """YAMLs that lm-eval skips without a word because they cannot be parsed."""
    problems = []
    for folder in include_path:
        for path in sorted(Path(folder).glob("**/*.yaml")):
            try:
                load_yaml(path, resolve_func=False)
            except (yaml.YAMLError, ValueError, OSError, RuntimeError) as error:  # a loop of links is the last
                problems.append(f"{path} ({reason(error)})")
    return problems

"""What a configuration may do without being asked to on the command line: nothing that runs foreign code.

A configuration that came with a run folder, an archive or a repository can name any class, module or task file. Only
evomerge's own parts are built from it unasked; what runs other code, or reaches outside the run, must stand on the
command line, or the command line must say ``--trust``.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.config.task_code import task_code
from evomerge.errors import ConfigError

FLAG = "--trust"
_TARGET = "_target_"
_OURS = ("evomerge.strategies.", "evomerge.evaluation.", "evomerge.trackers.", "search_spaces.", "fitness.")
_TIMEOUT = "task_timeout"
_TASK_KEYS = {
    "fitness.lm_eval_tasks.LmEvalFitness": "tasks",
    "fitness.unlabelled.UnlabelledFitness": "texts",
    "fitness.files.FilesFitness": "prompts",
    "fitness.calibration_tasks.TaskItems": "tasks",
}
"""Of what loads tasks of lm-eval, the key that names them."""
_LONGEST = 300.0  # seconds that a stranger's configuration may give a task
_DO = f"name it on the command line, or add {FLAG} if you know where it comes from"


def check_trust(content: Any, asked: Sequence[str], whose: str) -> None:
    """Refuse what would run code that is not evomerge's, or connect or write to where a stranger says.

    Args:
        content: a whole configuration as plain values.
        asked: the words of the command line: what one of them names is asked for.
        whose: the configuration, for messages.

    Raises:
        ConfigError: names the key.
    """
    for key, value in leaves(content):
        reason = _reason(key, value)
        if reason and not _is_asked(key, value, asked):
            raise ConfigError(f"{whose} has {key}: {str(value)[:200]}", reason, _DO)
    for key, named, tasks, folders in _task_nodes(content):
        places = f"{key}.{named}=", f"{key}.{named}.", f"{key}.include_path="
        given = any(word.lstrip("+").startswith(places) for word in asked)
        found = None if given else task_code(tasks, folders)
        if found:
            raise ConfigError(f"{whose}: {key}: {found}", "code of a task is not run unasked", _DO)


def leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping and no list, under its dotted key."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list):
        for place, value in enumerate(content):
            yield from leaves(value, f"{key}.{place}")
    else:
        yield key, content


def is_ours(target: Any) -> bool:
    """Whether a target is a class that a module of evomerge's parts defines: not what such a module imported."""
    path = str(target)
    module, _, name = path.rpartition(".")
    if not path.startswith(_OURS) or any(part.startswith("_") for part in path.split(".")):
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:  # building it says what is missing
        return True
    return found is None or (inspect.isclass(found) and found.__module__ == module)


def _reason(key: str, value: Any) -> str:
    """Why a value is not taken unasked; empty when it is."""
    if key.rpartition(".")[2] == _TARGET and not is_ours(value):
        return "code that is not evomerge's is not run unasked"
    if key.startswith("imports.") or (key == "imports" and value):
        return "modules that are not evomerge's are not imported unasked"
    if key == "pool.trust_remote_code" and value:
        return "code that models bring along is not run unasked"
    if key == "evaluator.address" and value not in (None, "auto", "local"):
        return "a Ray cluster runs what it likes on this machine: it is not connected to unasked"
    if key == "evaluator.shared_cache" and value not in ("auto", "off", "memory", "disk", "run"):
        return "nothing is written outside the run unasked"
    if re.fullmatch(r"(fitness|cheap|validation|held_out)(\..+)?\.cache", key) and value:
        return "nothing is written outside the run unasked"
    if re.fullmatch(r"trackers\.\d+\.(tracking_uri|entity|folder)", key) and value is not None:
        return "a run is told to no strange server, account or folder unasked"
    if key.rpartition(".")[2] == _TIMEOUT and not (isinstance(value, int | float) and value <= _LONGEST):
        return f"templates that may never end are not given more than {_LONGEST:g} s unasked"
    return ""


def _is_asked(key: str, value: Any, asked: Sequence[str]) -> bool:
    for word in asked:
        name, assigned, given = word.lstrip("+").partition("=")
        if not assigned:
            continue
        if name.partition(".")[0] != key.partition(".")[0]:
            continue
        if key.rpartition(".")[2] == _TIMEOUT and name == key:
            return True
        if key == "pool.trust_remote_code":
            if name == key or "trust_remote_code" in given:
                return True
        elif str(value) in re.split(r"[\s,{}\[\]'\"]+|: ", given):
            return True
    return False


def _task_nodes(content: Any, key: str = "") -> Iterator[tuple[str, str, list[Any], list[str]]]:
    """Every node that names tasks of lm-eval, however deep: its key, its own key that names them, they, and folders."""
    if isinstance(content, Mapping):
        named = _TASK_KEYS.get(str(content.get(_TARGET)), "")
        if named:
            given, folders = content.get(named), content.get("include_path")
            tasks = given if isinstance(given, list) else [given]
            if isinstance(given, Mapping) and named in ("texts", "prompts"):  # by name
                tasks = [text for text in given.values() if isinstance(text, Mapping) and text.get("task")]
            elif isinstance(given, Mapping):  # of every model
                tasks = [task for own in given.values() for task in (own if isinstance(own, list) else [own])]
            yield key, named, tasks, [str(f) for f in (folders if isinstance(folders, list) else [folders]) if f]
        for name, value in content.items():
            yield from _task_nodes(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list):
        for place, value in enumerate(content):
            yield from _task_nodes(value, f"{key}.{place}")

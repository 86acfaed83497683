"""Which code the YAML files of lm-eval tasks would run when they are loaded, found without loading them.

lm-eval imports what ``!function`` names, loads metrics that it does not know by the ``evaluate`` library, which runs
scripts, and reads prompts from any YAML file. None of that is needed for data, templates and lm-eval's own metrics.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import ConfigError

MAX_BYTES = 16 * 2**20
MAX_FILES = 10_000
MAX_DEPTH = 64
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_KEYS = ("include", "metric", "hf_evaluate", "use_prompt", "dataset_path")
_STANDARD = "tag:yaml.org,2002:"


def task_code(tasks: Sequence[Any], include_path: Sequence[str]) -> str | None:
    """What the tasks of a fitness would run, in a few words for a message; ``None`` for nothing.

    Args:
        tasks: of the fitness's configuration: names, paths to YAML files, or mappings with the key ``task``.
        include_path: folders with YAML files, all of which count: lm-eval's index reads them all.

    Raises:
        ConfigError: a file is too large, too deep, or one of too many.
    """
    files: list[Path] = []
    for entry in tasks:
        source = entry.get("task") if isinstance(entry, Mapping) else entry
        if isinstance(source, Mapping):
            found = next((f for f in map(_problem, *_pairs(source)) if f), None)
            if found:
                return f"task {str(source.get('task'))[:60]!r}: {found}"
            files += [_resolved(Path(str(value))) for key, value in _plain_pairs(source) if key == "include"]
        elif isinstance(source, str) and _is_file(Path(source)):
            files.append(_resolved(Path(source)))
    for folder in include_path:
        for path in _yaml_files(Path(str(folder))):
            files.append(_resolved(path))
            if len(files) > MAX_FILES:
                raise ConfigError(f"include_path {folder} has more than {MAX_FILES:,} files", "a folder of tasks")
    seen: set[Path] = set()
    while files:
        path = files.pop()
        if path in seen or not _is_file(path):  # a missing file is the fitness's to report
            continue
        seen.add(path)
        for key, value in _said(path):
            problem = _problem(key, value)
            if problem:
                return f"{path}: {problem}"
            if key == "include":
                files.append(_resolved(path.parent / value))
    return None


def _yaml_files(folder: Path) -> Iterator[Path]:
    """All below a folder; a name that cannot be a folder's has none, which is the fitness's to report."""
    try:
        yield from _resolved(folder).rglob("*.yaml")
    except (OSError, ValueError):
        return


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that cannot be one's is none."""
    try:
        return path.expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _resolved(path: Path) -> Path:
    """The path without links and ``..``, as far as that can be told."""
    try:
        return path.expanduser().resolve()
    except (OSError, ValueError, RuntimeError):
        return path


def _problem(key: str, value: Any) -> str | None:
    """What is wrong with one key and value of a task."""
    text = str(value)[:80]
    if key == "!":
        return f"{text} runs Python code"
    if key == "metric" and (not re.fullmatch(r"\w{1,64}", str(value), re.ASCII) or Path(str(value)).exists()):
        return f"the metric {text!r} may be a script"
    if key == "hf_evaluate" and str(value).lower() not in ("false", "null", "~", "none", "no", "off"):
        return "hf_evaluate runs a metric's script"
    if key == "use_prompt" and not str(value).startswith("qa-basic:"):
        return f"use_prompt {text!r} reads a file of prompts"
    if key == "dataset_path" and value == "pandas":
        return "dataset_path: pandas reads pickles"
    if key == "*":
        return f"{text} is an alias, whose value is elsewhere"
    return None


def _pairs(content: Any) -> tuple[list[str], list[Any]]:
    pairs = list(_plain_pairs(content))
    return [key for key, _ in pairs], [value for _, value in pairs]


def _plain_pairs(content: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Keys of `_KEYS` with their values, from the plain values of a configuration."""
    if depth > MAX_DEPTH:
        raise ConfigError(f"a task is nested more than {MAX_DEPTH} deep", "a task as lm-eval documents them")
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _plain_pairs(value, str(name), depth + 1)
    elif isinstance(content, Sequence) and not isinstance(content, str):
        for value in content:
            yield from _plain_pairs(value, key, depth + 1)
    elif key in _KEYS and content is not None:
        yield key, content


def _said(path: Path) -> Iterator[tuple[str, str]]:
    """As `_plain_pairs`, from a file; a tag that is not YAML's own has the key ``!``, an alias as value ``*``."""
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"task file {path} has {path.stat().st_size:,} bytes", f"at most {MAX_BYTES:,}")
    stack: list[list[Any]] = []  # of each open collection: whether it is a mapping, and the key that a value is of
    try:
        for event in yaml.parse(path.read_bytes(), Loader=_LOADER):
            tag = getattr(event, "tag", None)
            if tag is not None and not tag.startswith(_STANDARD) and tag != "!":
                yield "!", tag if not isinstance(event, yaml.ScalarEvent) else f"{tag} {event.value}"
            if isinstance(event, yaml.CollectionEndEvent):
                stack.pop()
                continue
            if not isinstance(event, yaml.NodeEvent):
                continue
            top = stack[-1] if stack else [False, ""]
            is_key = top[0] and top[1] is None
            key = "" if is_key else str(top[1])
            if isinstance(event, yaml.ScalarEvent):
                if is_key:
                    top[1] = event.value
                    continue
                if key in _KEYS:
                    yield key, event.value
            elif isinstance(event, yaml.AliasEvent):
                if is_key or key in _KEYS:
                    yield "*", f"*{event.anchor}"
            else:
                # A sequence hands the key that it is the value of on to its items.
                stack.append([isinstance(event, yaml.MappingStartEvent), None])
                if isinstance(event, yaml.SequenceStartEvent):
                    stack[-1] = [False, key]
                if len(stack) > MAX_DEPTH:
                    raise ConfigError(f"task file {path} is nested more than {MAX_DEPTH} deep", "a task of lm-eval's")
            if top[0]:
                top[1] = "" if is_key else None  # a collection as a key: its value follows, under no known name
    except (yaml.YAMLError, UnicodeError):
        return  # it is no YAML: lm-eval cannot load it either, and the fitness says so

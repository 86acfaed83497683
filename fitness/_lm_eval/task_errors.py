"""What a task's own templates, functions and data raise, said with the task, the document and where to look."""

from __future__ import annotations

import contextlib
import json
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import EvomergeError, FitnessError

_LONGEST = 160  # characters of a document


@contextmanager
def said(given: str, do: str = "") -> Iterator[None]:
    """Make what lm-eval or a task raises one line that begins with `given`: a `FitnessError`."""
    try:
        yield
    except EvomergeError:
        raise
    except Exception as error:
        raise FitnessError(f"{given}: {reason(error)}", do) from error


@contextmanager
def said_of_document(
    task: str, what: str, keys: str, document: Callable[[BaseException], tuple[int, Any] | None]
) -> Iterator[None]:
    """Make what a task raises at a document one line: a `FitnessError`.

    Args:
        task: its name.
        what: what cannot be done: ``its prompt cannot be built``.
        keys: of the task's YAML, to be looked at.
        document: gives the number of the document, from 0, and the document, from what was raised; ``None`` where
            that cannot be told.
    """
    try:
        yield
    except EvomergeError:
        raise
    except Exception as error:
        raise document_error(task, what, keys, document(error), error) from error


def document_error(
    task: str, what: str, keys: str, found: tuple[int, Any] | None, error: BaseException
) -> FitnessError:
    """The error of `said_of_document`."""
    which = f", document {found[0]} (from 0)" if found is not None else ""
    place = own_place(error)
    do = f"look at {keys} of the task" + (f", {place}" if place else "")
    shown = f" and at the document, {shortened(found[1])}" if found is not None else ""
    return FitnessError(f"task {task!r}{which}: {what}: {reason(error)}", do + shown)


def building_document(error: BaseException) -> tuple[int, Any] | None:
    """The document that lm-eval was building requests of when it raised, and its number in the split."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "build_all_requests" and "doc_id" in frame.f_locals:
            return frame.f_locals["doc_id"], frame.f_locals.get("doc")
    return None


def own_place(error: BaseException) -> str:
    """File and line of the task's own code that raised; empty where it was a library's."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path.suffix == ".py" and not _is_installed(path):
            place = f"{path.name}:{line}"
    return place


def _is_installed(path: Path) -> bool:
    folders = (Path(__file__).parents[2], Path(os.__file__).parent)
    return "site-packages" in path.parts or any(folder in path.parents for folder in folders)


def shortened(document: Any) -> str:
    """A document in at most `_LONGEST` characters of one line."""
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        text = json.dumps(document, ensure_ascii=False, default=str)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return f"of type {type(document).__name__}"


def reason(error: BaseException) -> str:
    """The root cause in one line: lm-eval and datasets wrap what a user needs to see."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem or error.context}, line {error.problem_mark.line + 1}"
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else f"{type(error).__name__}, raised in {_innermost(error)}"


def _innermost(error: BaseException) -> str:
    """The function that raised what says nothing itself, with its file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].name} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else "an unknown place"

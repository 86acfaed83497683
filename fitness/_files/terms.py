"""What a user says of prompts and raters, parsed and checked. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigError
from evomerge.run.ratings.rules import RATER
from fitness._text_files import document_of, read_lines, text_of
from fitness._unlabelled.values import finite, require_keys, whole

_KEYS = ("file", "key", "task", "limit")
_ALONE = "prompts"
_MOST_PROMPTS = 10_000
_MOST_RATERS = 1000


@dataclass(frozen=True)
class PromptTerm:
    """Prompts that have a name.

    Attributes:
        name: it, which metrics begin with.
        file, key: a file of prompts, a line each, or JSONL and the key of the prompt.
        task: an lm-eval task whose documents ask.
        limit: the first so many.
        where: the configuration's key that names the file.
    """

    name: str
    file: str
    key: str
    task: str | dict[str, Any]
    limit: int | None
    where: str


@dataclass(frozen=True)
class Prompts:
    """The prompts of a name.

    Attributes:
        texts: them.
        documents: of each two hashes, by which others find that it is the same.
    """

    texts: Sequence[str]
    documents: Sequence[tuple[str, str]]


def parse_prompts(prompts: Any) -> tuple[PromptTerm, ...]:
    """The prompts that a user describes: a file alone, or by name a file or a mapping.

    Raises:
        ConfigError: naming the key.
    """
    if isinstance(prompts, str) and prompts:
        return (_term(_ALONE, prompts, "prompts"),)
    given = prompts
    if not isinstance(given, Mapping) or not given:
        what = "prompts is empty" if not given else f"prompts is {given!r}"
        allowed = "a file, or a name for each kind of prompts with a file or a task"
        raise ConfigError(what, allowed, "prompts=questions.jsonl, or prompts={chat: {task: TASK, limit: 20}}")
    return tuple(_term(str(name), value, f"prompts.{name}") for name, value in given.items())


def _term(name: str, value: Any, key: str) -> PromptTerm:
    if not re.fullmatch(r"[\w.-]{1,100}", name):
        raise ConfigError(f"prompts has the name {name!r}", "letters, digits, '.', '-' and '_'")
    given: Any = {"file": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key} is {value!r}", "a file, or a mapping with file or task")
    require_keys(given, _KEYS, key)
    file, task, limit = given.get("file") or "", given.get("task") or "", given.get("limit")
    if bool(file) == bool(task):
        raise ConfigError(f"{key} has {'both file and task' if file else 'neither file nor task'}", "one of them")
    if not isinstance(file, str):
        raise ConfigError(f"{key}.file is {file!r}", "the path of a file")
    if not isinstance(task, str | Mapping):
        raise ConfigError(f"{key}.task is {task!r}", "the name or the YAML of an lm-eval task, or its content")
    lines = file.endswith((".jsonl", ".json"))
    if given.get("key") is not None and not (lines and isinstance(given["key"], str)):
        raise ConfigError(f"{key}.key is {given['key']!r}", "the key of the prompt in a JSONL file: *.jsonl")
    most = whole(limit, f"{key}.limit", 1, _MOST_PROMPTS) if limit is not None else None
    own = given.get("key") or ("prompt" if lines else "text")
    where = key if isinstance(value, str) else f"{key}.file"
    return PromptTerm(name, file, own, dict(task) if isinstance(task, Mapping) else task, most, where)


def read_prompts(terms: Sequence[PromptTerm], include_path: Sequence[str], timeout: float | None) -> dict[str, Prompts]:
    """Read them, by name.

    Raises:
        FitnessError: a file or a task that cannot be read, or has no prompts.
    """
    return {term.name: _read(term, include_path, timeout) for term in terms}


def _read(term: PromptTerm, include_path: Sequence[str], timeout: float | None) -> Prompts:
    if term.task:
        from fitness._lm_eval.prompts import task_prompts

        return Prompts(*task_prompts(term.task, include_path, term.limit, timeout))
    lines = read_lines(term.file, term.where, term.limit, '{"prompt": "words"}')
    texts = [text_of(line, term.key, f"prompts.{term.name}.key") for line in lines]
    return Prompts(texts, [document_of(line, text) for line, text in zip(lines, texts, strict=True)])


def parse_raters(raters: Any) -> tuple[int, tuple[str, ...]]:
    """How many must rate a candidate, and who they are, where that is said.

    Raises:
        ConfigError: no number of people, or a name that no file can have.
    """
    if isinstance(raters, int):
        return whole(raters, "raters", 1, _MOST_RATERS), ()
    names = [str(name) for name in raters or ()]
    if not names:
        raise ConfigError(f"raters is {raters!r}", "how many must rate a candidate, or their names")
    for name in names:
        if not RATER.fullmatch(name):
            raise ConfigError(f"raters has {name!r}", "names of letters, digits, - and _: files are called by them")
    if len({name.lower() for name in names}) < len(names):
        raise ConfigError(f"raters is {names}", "each name once: upper and lower case are not told apart everywhere")
    return len(names), tuple(names)


SCALE = (1.0, 5.0)
"""Of scores, where nobody says."""


def scale_of(scale: Any, by: str) -> tuple[float | None, float | None]:
    """`parse_scale`; of pairs, where a text is better or not, 0 to 1.

    Raises:
        ConfigError: as there; a scale of pairs.
    """
    found = parse_scale(scale)
    if by != "pair":
        return found
    if found not in (SCALE, (None, None)):
        what = f"by is 'pair', and scale [{found[0]:g}, {found[1]:g}]"
        raise ConfigError(what, "a scale where raters score: of pairs they say which is better", "leave scale out")
    return 0.0, 1.0


def parse_scale(scale: Any) -> tuple[float | None, float | None]:
    """The lowest and the highest score; none where any number is one.

    Raises:
        ConfigError: no two numbers, the lower one first.
    """
    if scale is None:
        return None, None
    if not isinstance(scale, Sequence) or isinstance(scale, str) or len(scale) != 2:
        raise ConfigError(f"scale is {scale!r}", "the lowest and the highest score, such as [1, 5], or null")
    low, high = (finite(value, "scale") for value in scale)
    if not low < high:
        raise ConfigError(f"scale is {list(scale)}", "the lowest score first, and another one as the highest")
    return low, high


def refuse_people(raters: tuple[int, tuple[str, ...]], by: str, scale: tuple[float | None, float | None]) -> None:
    """`ConfigError` where something is said of raters, and nobody rates."""
    given = {"raters": raters != (1, ()), "by": by != "item", "scale": scale not in (SCALE, (None, None))}
    key = next((key for key, said in given.items() if said), None)
    if key is not None:
        raise ConfigError(f"{key} is set, and people rate nothing", "metrics=rating", "leave it out, or set metrics")

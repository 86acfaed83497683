"""Keyword arguments of Python as overrides: what a notebook gives is composed as what a command line gives."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from evomerge.errors import ConfigError

_NODES = (
    *("pool", "search", "search_space", "strategy", "fitness", "cheap", "validation", "held_out", "evaluator"),
    *("calibration", "statistics", "learning"),
)
"""Keys whose mappings are a key each: what is left out stays as it is."""

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
_WORDS = {"true", "false", "null", "nan", "inf"}
_NAME = re.compile(r"[\w./:@+=, ()\[\]{}-]+", re.ASCII)
_SPECIAL = re.compile(r"([\\()\[\]{}:=, \t])")

_OF_FITNESS = ("cheap", "validation", "held_out")  # other fitnesses, ``null`` by default


def override_words(overrides: Sequence[object], keywords: Mapping[str, Any]) -> list[str]:
    """Overrides as the command line has them, from words and keyword arguments.

    A keyword is a key (``strategy="ga"``, ``**{"search.evaluations": 20}``); a mapping stands for the keys below it
    (``search={"evaluations": 20}``), or for the whole node where it has a ``_target_``. ``held_out`` is the choice
    of ``fitness@held_out``, ``validation`` and ``cheap`` likewise.

    Raises:
        ConfigError: something that no configuration can hold.
    """
    words = []
    for word in overrides:
        if not isinstance(word, str):
            raise ConfigError(f"an override is {word!r}", "text: 'key=value'", "give other values as keywords")
        words.append(word)
    for key, value in keywords.items():
        words += _words(key, value)
    return words


def _words(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and key in _NODES:
        if "_target_" in value:  # in place of the choice, whose other keys it has not
            yield f"{key}=null" if key in _OF_FITNESS else f"~{key}"
            yield f"{key}={written(value, key)}"
        else:
            for name, inner in value.items():
                yield f"{key}.{name}={written(inner, f'{key}.{name}')}"
    elif key in _OF_FITNESS and value is not None:
        yield f"fitness@{key}={written(value, key)}"
    else:
        yield f"{key}={written(value, key)}"


def written(value: Any, key: str) -> str:
    """A value as it is written in an override, so that it is read back as it was.

    Args:
        value: a scalar, a path, or mappings and sequences of them.
        key: for messages.

    Raises:
        ConfigError: a configuration holds no such value.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):  # numpy's too, which write themselves with their type
        return repr(int(value) if isinstance(value, int) else float(value))
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() not in _WORDS else _quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_name(name, key)}: {written(inner, key)}" for name, inner in value.items()) + "}"
    if isinstance(value, Sequence | Set) and not isinstance(value, bytes | bytearray):
        return "[" + ", ".join(written(inner, key) for inner in value) + "]"
    if getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        return written(value.item(), key)
    raise ConfigError(
        f"{key} is of type {type(value).__name__}", "text, numbers, true or false, None, paths, and lists or mappings"
    )


def _name(name: object, key: str) -> str:
    """A key of a mapping, which Hydra's grammar does not let stand in quotes."""
    text = str(name)
    if not _NAME.fullmatch(text) or text.lower() in _WORDS or text[0].isdigit():
        raise ConfigError(
            f"{key} has the name {text!r}", "ASCII letters, digits and -_./:@+=, beginning with a letter", "rename it"
        )
    return _SPECIAL.sub(r"\\\1", text)


def _quoted(text: str) -> str:
    """Text in the quotes of Hydra's grammar, where a backslash counts before a quote only."""
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)
    return "'" + re.sub(r"(\\+)$", lambda found: found[1] * 2, escaped) + "'"

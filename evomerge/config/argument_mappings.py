"""Arguments of other programs, which are one text as theirs is, or a mapping whose entries are set one by one."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.errors import ConfigError

ARGUMENTS = (
    "evaluator.engine_args",
    *(f"{node}.model_args" for node in ("fitness", "cheap", "validation", "held_out")),
)


def entries_of_arguments(overrides: Sequence[str]) -> list[str]:
    """Those of the overrides that set a single entry: ``fitness.model_args.max_length=32``."""
    inside = tuple(f"{place}." for place in ARGUMENTS)
    return [word for word in overrides if word.lstrip("+").startswith(inside) and "=" in word]


def beside_a_text(key: str, place: str, text: str) -> ConfigError:
    """What to say where an entry is set of arguments that are a text."""
    name = key.removeprefix(f"{place}.")
    return ConfigError(
        f"{key} is set, and {place} is the text {text!r}",
        "a mapping takes single entries, a text has all of them",
        f"add {name} to the text, or give a mapping: {place}={{{name}: ...}}",
    )

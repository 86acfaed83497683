"""lm-eval's ``--model_args`` as one key, beside those that stand for themselves. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from evomerge.errors import ConfigError, nearest
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.foreign_keys import FOREIGN_KEYS

_KEY = "model_args"
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "none": None, "null": None}


def with_model_args(model_args: str | Mapping[str, Any] | None, **given: Any) -> ModelArguments:
    """The arguments of a fitness together with those that stand in its `model_args`.

    Args:
        model_args: ``"max_length=4096,add_bos_token=true"`` as the command has it, or a mapping.
        given: what the keys of the fitness say.

    Raises:
        ConfigError: an argument that evomerge owns, and which key stands for it; one that there is none of; one that a
            key of the fitness says otherwise; a value out of its range.
    """
    fields = {field.name: field for field in dataclasses.fields(ModelArguments)}
    more = _parsed(model_args)
    for name, value in more.items():
        if name in FOREIGN_KEYS and name != _KEY:
            raise ConfigError(f"{_KEY} has {name!r}", *FOREIGN_KEYS[name])
        if name not in fields:
            raise ConfigError(f"{_KEY} has {name!r}", nearest(name, fields))
        default = ModelArguments.default(fields[name])
        if given.get(name, default) not in (default, value):
            raise ConfigError(
                f"{name} is {given[name]!r}, and {value!r} in {_KEY}", "one of the two", f"leave {_KEY}.{name} out"
            )
    return ModelArguments(**{**given, **more})


def _parsed(model_args: str | Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(model_args, str):
        return dict(model_args or {})
    found = {}
    for part in filter(None, (part.strip() for part in model_args.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(
                f"{_KEY} is {model_args!r}",
                f"arguments with their values; {part!r} has none",
                f"for example {_KEY}='max_length=4096,add_bos_token=true'",
            )
        found[name.strip()] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    """What lm-eval takes a word for: true, false, none, a number, what is quoted, else itself."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

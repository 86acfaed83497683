"""lm-eval's ``--model_args`` as one key, beside those that stand for themselves. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from evomerge.errors import ConfigError, nearest
from evomerge.utils.argument_text import arguments_in
from fitness._lm_eval.arguments import ModelArguments
from fitness._lm_eval.foreign_keys import FOREIGN_KEYS

_KEY = "model_args"


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
            do = "what else vLLM's engine takes stands in evaluator.engine_args"
            raise ConfigError(f"{_KEY} has {name!r}", nearest(name, fields), do)
        default = ModelArguments.default(fields[name])
        if given.get(name, default) not in (default, value):
            raise ConfigError(
                f"{name} is {given[name]!r}, and {value!r} in {_KEY}", "one of the two", f"leave {_KEY}.{name} out"
            )
    return _made(given, more)


def _parsed(model_args: str | Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(model_args, str):
        return dict(model_args or {})
    return arguments_in(model_args, _KEY, "'\"max_length=4096,add_bos_token=true\"'")


def _made(given: Mapping[str, Any], more: Mapping[str, Any]) -> ModelArguments:
    """The arguments; an error about one of `more` names the key that it stands in."""
    try:
        return ModelArguments(**{**given, **more})
    except ConfigError as error:
        if error.given.partition(" ")[0].partition(".")[0] in more:
            raise ConfigError(f"{_KEY}.{error.given}", error.allowed, error.do) from error
        raise

"""Arguments in one text, as lm-eval's ``--model_args`` takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import ConfigError

_WORDS: Mapping[str, Any] = {"true": True, "false": False, "none": None, "null": None}


def arguments_in(text: str, key: str, example: str) -> dict[str, Any]:
    """The arguments in a text such as ``max_length=4096,add_bos_token=true``.

    Args:
        text: names with values, between commas.
        key: of the configuration, for messages.
        example: a value as a shell takes it, for messages.

    Raises:
        ConfigError: one without a value.
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(
                f"{key} is {text!r}", f"arguments with their values; {part!r} has none", f"for example {key}={example}"
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

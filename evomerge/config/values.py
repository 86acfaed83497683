"""Whether a value is of the type that its key takes. Numbers are numbers here: ``true`` is not 1, nor is ``'3'`` 3."""

from __future__ import annotations

import functools
import json
import operator
import types
import typing
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, PydanticUserError, Strict, TypeAdapter, ValidationError

from evomerge.errors import ConfigError

_EXACT = (int, float, bool)
_TAKES = {
    "int_": "a whole number",
    "float_": "a number",
    "bool_": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "a mapping",
}
"""What a value should be, by how pydantic calls the fault."""


def converted(value: Any, annotation: Any, key: str) -> Any:
    """A value of a configuration as its annotation has it: lists as tuples, whole numbers as floats where one is due.

    Args:
        value: as a configuration holds it: a scalar, a list, a mapping.
        annotation: of the argument or field that it is for.
        key: for messages.

    Raises:
        ConfigError: it is of another type. True and false are no numbers, texts are none, and 3.0 is no whole number.
    """
    try:
        return _adapter(_exact(annotation)).validate_python(value)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # Of the types that a key takes, the one into which the value fits furthest is meant.
        first = faults[0] if _is_scalar(value) else max(faults, key=lambda fault: len(_place(fault)))
        place = ".".join(_place(first))
        messages = [_takes(fault) for fault in faults] if _is_scalar(value) else [_takes(first)]
        allowed = f"it should be {' or '.join(dict.fromkeys(messages))}" + (f" (at {place})" if place else "")
        raise ConfigError(f"{key} is {_shown(value)}", allowed) from error


def _place(fault: Any) -> list[str]:
    """Where in a value a fault is."""
    return [str(part) for part in fault["loc"] if not _is_internal(part)]


def _takes(fault: Any) -> str:
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return next((takes for kind, takes in _TAKES.items() if fault["type"].startswith(kind)), str(message))


def _shown(value: Any) -> str:
    """A value as configurations write it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _is_internal(part: Any) -> bool:
    """Whether a part of pydantic's location is a branch of a union, which nobody has written."""
    return str(part) in ("int", "float", "bool", "str", "none", "nullable") or "[" in str(part)


def _exact(annotation: Any) -> Any:
    """An annotation whose numbers take numbers alone."""
    if annotation in _EXACT:
        return Annotated[annotation, Strict()]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(_exact, inner)) if inner else annotation
    if origin in (None, Literal, Annotated) or typing.get_origin(origin) is not None or not inner:
        return annotation
    try:
        return origin[tuple(entry if entry is ... else _exact(entry) for entry in inner)]
    except TypeError:  # a callable's arguments, which no configuration holds
        return annotation


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # dataclasses and models bring a configuration of their own
        return TypeAdapter(annotation)

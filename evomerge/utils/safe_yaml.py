"""Untrusted YAML read safely: bounded size and depth, no aliases, tags or repeated keys, errors that name the key."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from evomerge.errors import RecipeError, nearest
from evomerge.utils.files import read_bounded
from evomerge.utils.yaml_nodes import nodes
from evomerge.utils.yaml_numbers import misread

MAX_CHARACTERS = 16 * 2**20
MAX_DEPTH = 16

T = TypeVar("T")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # mypy wants a fixed base
    """Safe YAML that also reads 1e-5 as a number, as YAML 1.2 does."""


def read_exponents(resolver: type[yaml.resolver.BaseResolver]) -> None:
    """Make a loader read 1e-5 as a number, and a dumper quote text that looks like it (some commit hashes do)."""
    pattern = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    resolver.add_implicit_resolver("tag:yaml.org,2002:float", pattern, list("-+.0123456789"))


read_exponents(_Loader)


def read_text(path: Path) -> str:
    """The text of a file; `RecipeError` when it cannot be read, is too large or is not text."""
    try:
        return read_bounded(path, 4 * MAX_CHARACTERS).decode("utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not text", "YAML in UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}", "a file of YAML") from None


def parse(text: str) -> Any:
    """The plain values of a YAML document; `RecipeError` when it is not one, or is too large or too deep."""
    return _read(text, lambda loader: [loader.get_single_node()])[0]


def parse_all(text: str) -> list[Any]:
    """The plain values of every document of a YAML file; `RecipeError` as for `parse`."""

    def nodes(loader: Any) -> Iterator[yaml.Node]:
        while loader.check_node():
            yield loader.get_node()

    return _read(text, nodes)


def _read(text: str, nodes: Callable[[Any], Iterable[yaml.Node | None]]) -> list[Any]:
    """The values of the nodes that `nodes` gets from a loader, after all checks."""
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(f"the file has {len(text):,} characters", f"a recipe has at most {MAX_CHARACTERS:,}")
    try:
        _check_events(text)
        loader = _Loader(text)
        try:
            values = []
            for node in nodes(loader):
                _check_keys(node)
                values.append(None if node is None else loader.construct_document(node))
            return values
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number or date that Python refuses
        problem = " ".join(str(error).split())
        raise RecipeError(f"the file is not valid YAML: {problem}") from None


def _check_events(text: str) -> None:
    """Refuse, before composing, what makes composing expensive or recursive, and values that say their own type."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.events.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.events.CollectionEndEvent):
            depth -= 1
        where = f"line {event.start_mark.line + 1}" if event.start_mark else "the file"
        if depth > MAX_DEPTH:
            raise RecipeError(f"{where} is nested {depth} deep", f"a recipe has at most {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            raise RecipeError(f"{where} uses the alias *{event.anchor}", "no aliases", "write the value out")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and misread(event.value):
            read = misread(event.value)
            raise RecipeError(f"{where}: {event.value} would be read as {read}", "a decimal number, or text in quotes")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise RecipeError(f"{where} uses the tag {tag}", "no tags", "write the plain value")


def _check_keys(node: yaml.Node | None) -> None:
    """Refuse keys that are given twice: YAML would silently keep the last."""
    for key, _, line in repeated_keys(node):
        raise RecipeError(f"{key!r} on line {line} is given twice", "every key once")


def repeated_keys(node: yaml.Node | None) -> Iterator[tuple[str, int, int]]:
    """Keys that stand twice in the same mapping, with the lines of both from 1."""
    for each in nodes(node):
        lines: dict[str, int] = {}
        for key, _ in each.value if isinstance(each, yaml.MappingNode) else ():
            name, line = str(key.value), key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and name in lines:
                yield name, lines[name], line
            lines[name] = line


def mapping(content: Any, where: str, required: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    """A mapping with these keys and no others."""
    here = where or "the file"
    if content is None:
        raise RecipeError(f"{here} is empty", f"a mapping with {', '.join((*required, *optional))}")
    if not isinstance(content, dict):
        raise RecipeError(f"{here} is {shown(content)}", f"a mapping with {', '.join((*required, *optional))}")
    dot = f"{where}." if where else ""
    for key in content:
        if key not in required and key not in optional:
            raise RecipeError(f"unknown key {dot}{key}", nearest(str(key), (*required, *optional)))
    for key in required:
        if key not in content:
            raise RecipeError(f"{dot}{key} is missing", f"{here} needs {', '.join(required)}")
    return content


def optional(fields: dict[str, Any], key: str, where: str, read: Callable[[Any, str], T]) -> T | None:
    """`read` applied to a field that may be missing or null."""
    value = fields.get(key)
    return None if value is None else read(value, f"{where}.{key}" if where else key)


def items(content: Any, where: str) -> list[Any]:
    """A list that is not empty."""
    if not isinstance(content, list) or not content:
        raise RecipeError(f"{where} is {shown(content)}", "a list of one or more")
    return content


def text(content: Any, where: str) -> str:
    """Text that is not empty."""
    if not isinstance(content, str) or not content:
        quoted = "" if isinstance(content, list | Mapping) else "put it in quotes if it is a name"
        raise RecipeError(f"{where} is {shown(content)}", "text", quoted)
    return content


def integer(content: Any, where: str) -> int:
    """An integer of at most 63 bits."""
    if isinstance(content, bool) or not isinstance(content, int) or abs(content) >= 2**63:
        raise RecipeError(f"{where} is {shown(content)}", "an integer below 2^63")
    return content


def number(content: Any, where: str) -> int | float:
    """A finite number."""
    whole = isinstance(content, int) and abs(content) < 2**63
    if isinstance(content, bool) or not (whole or (isinstance(content, float) and math.isfinite(content))):
        raise RecipeError(f"{where} is {shown(content)}", "a finite number")
    value: int | float = content
    return value


def shown(content: Any) -> str:
    """A value as messages show it: short, on one line."""
    written = repr(content)
    return written if len(written) <= 60 else f"{written[:57]}..."

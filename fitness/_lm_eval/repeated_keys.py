"""Keys that a task's YAML gives twice: the later one would win without a word, and change the score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from evomerge.errors import FitnessError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def refuse_repeated_keys(path: Path) -> None:
    """Look at a task's file and at those that it includes.

    Raises:
        FitnessError: names the file, the key and both lines.
    """
    todo, seen = [path], set[Path]()
    while todo:
        file = todo.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=_LOADER)  # tags stay as they are written
        for key, first, second in _repeated(node):
            raise FitnessError(
                f"{file} gives {key!r} in line {first} and again in line {second}",
                "every key once: the later one would win",
                "remove one of them",
            )
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == "include":
                    entries = value.value if isinstance(value, yaml.SequenceNode) else [value]
                    todo += [file.parent / str(entry.value) for entry in entries]


def _repeated(node: yaml.Node | None) -> Iterator[tuple[str, int, int]]:
    """Keys that stand twice in the same mapping, with the lines from 1."""
    todo = [node]
    seen = set[int]()
    while todo:
        each = todo.pop()
        if each is None or id(each) in seen:  # an alias may lead back
            continue
        seen.add(id(each))
        if isinstance(each, yaml.SequenceNode):
            todo += each.value
        elif isinstance(each, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in each.value:
                todo.append(value)
                name, line = str(key.value), key.start_mark.line + 1
                if name in lines and name != "<<":
                    yield name, lines[name], line
                lines[name] = line

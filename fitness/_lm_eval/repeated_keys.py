"""Keys that a task's YAML gives twice: the later one would win without a word, and change the score."""

from __future__ import annotations

from pathlib import Path

import yaml

from evomerge.errors import FitnessError
from evomerge.utils.safe_yaml import repeated_keys

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
        for key, first, second in repeated_keys(node):
            if key == "<<":  # a merge may stand several times
                continue
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

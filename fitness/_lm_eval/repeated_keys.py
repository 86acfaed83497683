"""What a task's YAML must not hold: keys given twice, of which the later would win without a word, and pipes."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import yaml

from evomerge.errors import FitnessError
from evomerge.utils.safe_yaml import repeated_keys

_INCLUDE = re.compile(rb"""(?m)^include:[ \t]*['"]?([^'"\r\n#]+?)['"]?[ \t]*(?:#.*)?$""")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def refuse_repeated_keys(path: Path) -> None:
    """Look at a task's file and at those that it includes.

    Raises:
        FitnessError: names the file, the key and both lines.
    """
    todo, seen = [path], set[Path]()
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        _refuse_special(file)
        if not file.is_file():
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


def refuse_special_includes(folder: Path) -> None:
    """Look at what the task files of a folder include: reading a pipe would wait for its writer.

    Raises:
        FitnessError: names what is no regular file.
    """
    for file in folder.rglob("*.yaml"):
        if not file.is_dir():
            _refuse_special(file)  # lm-eval reads all of them
        if file.is_file():
            for name in _INCLUDE.findall(file.read_bytes()):
                _refuse_special(file.parent / name.decode(errors="replace"))


def _refuse_special(file: Path) -> None:
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError):  # what is not there is said by whoever wants it
        return
    if not stat.S_ISREG(mode):
        raise FitnessError(f"{file} is no regular file", "a task file in YAML", "remove it, or name another")

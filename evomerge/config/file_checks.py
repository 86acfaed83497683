"""What files of a configuration hold that changes what they say, without a word: marks, and numbers in odd bases."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import ConfigError
from evomerge.utils.yaml_numbers import misread_values

_MOST_FILES = 1000
_MOST_BYTES = 16 * 2**20
_BEGINNINGS = {codecs.BOM_UTF8: "UTF-8", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_files(folder: Path, words: Sequence[str]) -> None:
    """Refuse files that begin with a byte order mark, behind which Hydra does not find the header, or misread numbers.

    Args:
        folder: with files of a user's configuration.
        words: of the command line; only files that one of them names, or the defaults of such a file, are looked at.

    Raises:
        ConfigError: names the file.
    """
    files = [file for file in sorted(folder.rglob("*.yaml"))[:_MOST_FILES] if file.is_file()]  # a FIFO would wait
    named, seen = _names(words), set[Path]()
    while todo := [file for file in files if file.stem in named and file not in seen]:
        for file in todo:
            seen.add(file)
            named |= _names(_checked(file))


def _names(texts: Iterable[str]) -> set[str]:
    return {name for text in texts for name in re.split(r"[^\w.-]+", text)}


def _checked(file: Path) -> list[str]:
    """The scalars of a file's list of defaults, all else being as it should."""
    if file.stat().st_size > _MOST_BYTES:
        raise ConfigError(f"{file} has {file.stat().st_size:,} bytes", f"at most {_MOST_BYTES:,}")
    content = file.read_bytes()
    for mark, encoding in _BEGINNINGS.items():
        if content.startswith(mark):
            raise ConfigError(
                f"{file} begins with a byte order mark ({encoding})",
                "UTF-8 without one",
                "save it so in your editor",
            )
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{file}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8",
            "text in UTF-8",
            "save it so in your editor",
        ) from None
    try:
        node = yaml.compose(content, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError):
        return []  # Hydra says so
    for text, read, line in misread_values(node):
        raise ConfigError(f"{file}, line {line}: {text} would be read as {read}", "a decimal number, or text in quotes")
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return [text for key, value in pairs if key.value == "defaults" for text in _scalars(value)]


def _scalars(node: Any) -> Iterator[str]:
    """Every scalar below a node."""
    if isinstance(node, yaml.ScalarNode):
        yield str(node.value)
    elif isinstance(node, yaml.CollectionNode):
        for entry in node.value:
            for part in entry if isinstance(entry, tuple) else (entry,):
                yield from _scalars(part)

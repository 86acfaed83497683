"""Marks in files of a configuration that change what they say, or hide its header, without a word."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path

from evomerge.errors import ConfigError

_MOST_FILES = 1000
_BEGINNINGS = {codecs.BOM_UTF8: "UTF-8", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def check_marks(folder: Path, words: Sequence[str]) -> None:
    """Refuse files that begin with a byte order mark: Hydra does not find the header behind it.

    Args:
        folder: with files of a user's configuration.
        words: of the command line; only files that one of them names are looked at.

    Raises:
        ConfigError: names the file.
    """
    named = {name for word in words for name in re.split(r"[^\w.-]+", word)}
    for file in sorted(folder.rglob("*.yaml"))[:_MOST_FILES]:
        if file.stem not in named or not file.is_file():  # a FIFO would wait for its writer
            continue
        with file.open("rb") as content:
            beginning = content.read(4)
        for mark, encoding in _BEGINNINGS.items():
            if beginning.startswith(mark):
                raise ConfigError(
                    f"{file} begins with a byte order mark ({encoding})",
                    "UTF-8 without one",
                    "save it so in your editor",
                )

"""What marks the folder of a protocol's run."""

from __future__ import annotations

from pathlib import Path

FILE = "protocol.yaml"
"""The protocol's name, and the words of the command line."""


def is_protocol(path: str | Path) -> bool:
    """Whether a folder is the run of a protocol."""
    return (Path(path) / FILE).is_file()

"""The files of a tokenizer, and fields that all relies on: checked where transformers takes anything for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import PoolError
from evomerge.models.architecture.config_fields import read_mapping

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)

_MAPPINGS = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
_MOST_BYTES = 2**30
_AGAIN = "correct it, or download the tokenizer again"
_SIDES = ("left", "right")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def same_files(folder: Path, other: Path) -> bool:
    """Whether both folders' tokenizer files are the same, byte for byte."""
    for name in TOKENIZER_FILES:
        a, b = folder / name, other / name
        if a.is_file() != b.is_file():
            return False
        if a.is_file() and (a.stat().st_size != b.stat().st_size or a.read_bytes() != b.read_bytes()):
            return False
    return True


def check_files(folder: Path) -> None:
    """Refuse files of a tokenizer that are no JSON mappings, and links to nothing in their places.

    Raises:
        PoolError: names the file.
    """
    for name in _MAPPINGS:
        if (folder / name).is_file() or (folder / name).is_symlink():
            read_mapping(folder / name, _MOST_BYTES, _AGAIN)


def check_fields(tokenizer: Any, folder: Path) -> None:
    """Refuse fields of a loaded tokenizer that are of another kind than all who read them expect.

    Args:
        tokenizer: as transformers loaded it.
        folder: that it is from.

    Raises:
        PoolError: names the field.
    """
    for name, allowed, right in (
        ("model_max_length", "a number of tokens", _is_number),
        ("chat_template", "a text, or texts by name", _is_template),
        ("padding_side", "left or right", lambda value: value in _SIDES),
        ("truncation_side", "left or right", lambda value: value in _SIDES),
    ):
        value = getattr(tokenizer, name, None)
        if value is not None and not right(value):
            raise PoolError(f"the tokenizer in {folder} has {name} {str(value)[:80]!r}", allowed, _AGAIN)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_template(value: Any) -> bool:
    texts = value.values() if isinstance(value, Mapping) else [value]
    return all(isinstance(text, str) for text in texts)

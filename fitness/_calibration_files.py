"""Calibration items that are read from files, whatever a file holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from evomerge.errors import ConfigError
from fitness._documents import Document, by_model, check_draw, drawn

Item = TypeVar("Item")
Entry = TypeVar("Entry")


class FileItems(ABC, Generic[Entry, Item]):
    """Items of files, each of which is read once.

    Args:
        files: paths, for all models; or a mapping of models to theirs.
        items: of each model; drawn from all of its files where these have more.
        seed: of the draw.

    Attributes:
        example: a file's name for messages.

    Raises:
        ConfigError: an argument out of its range.
    """

    example: ClassVar[str]

    def __init__(self, files: list[str] | dict[str, Any], *, items: int = 256, seed: int = 0) -> None:
        check_draw(items, seed)
        if not files:
            raise ConfigError("files is empty", "at least one file", f"for example files=[{self.example}]")
        self._files, self._items, self._seed = files, items, seed
        self._read: dict[str, list[Entry]] = {}
        self._given: dict[str, list[Document]] = {}

    def check(self) -> None:
        """`FitnessError` for a file that cannot be read."""
        named = self._files.values() if hasattr(self._files, "values") else [self._files]
        for each in named:
            for file in [each] if isinstance(each, str) else each:
                self._of_file(str(file))

    def items(self, model: str) -> Sequence[Item]:
        """The items of a model."""
        found = [entry for file in by_model(self._files, model, "files") for entry in self._of_file(file)]
        chosen = drawn(found, self._items, self._seed)
        self._given[model] = [self._document(entry) for entry in chosen]
        return [self._item(entry) for entry in chosen]

    def documents(self) -> Sequence[tuple[str, str]]:
        """Hashes of the items of all models so far: of what is asked, and of all that an item has."""
        return [document for own in self._given.values() for document in own]

    def _of_file(self, file: str) -> list[Entry]:
        if file not in self._read:
            self._read[file] = self._entries(file)
        return self._read[file]

    @abstractmethod
    def _entries(self, file: str) -> list[Entry]:
        """All that a file holds; `FitnessError` where it cannot be read."""

    @abstractmethod
    def _item(self, entry: Entry) -> Item:
        """The item of an entry."""

    @abstractmethod
    def _document(self, entry: Entry) -> Document:
        """What identifies it."""

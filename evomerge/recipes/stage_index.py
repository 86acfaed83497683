"""Which intermediates a recipe depends on, by name, told without walking the lineage behind it."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Protocol

from evomerge.errors import RecipeError

MOST_TABLES = 64
"""Tables that are kept at most, those used last."""


class Stage(Protocol):
    """What an index asks of a recipe."""

    @property
    def intermediates(self) -> tuple[tuple[str, Any], ...]:
        """Those that it takes itself, by name."""

    @property
    def known_index(self) -> StageIndex | None:
        """All that it depends on; ``None`` where nobody has asked for that yet."""

    def equals_alone(self, other: Any) -> bool:
        """Whether another is the same but for the content of its intermediates."""


class _Table:
    """Intermediates by name, each with its place; ``None`` when it was let go."""

    def __init__(self, entries: dict[str, tuple[int, Stage]]) -> None:
        self.entries: dict[str, tuple[int, Stage]] | None = entries


_USED: OrderedDict[int, weakref.ref[_Table]] = OrderedDict()


class StageIndex:
    """The intermediates of a recipe, direct and further ones, by name.

    Recipes of one lineage share a table to which each appends, and know how many of its entries are theirs: a chain of
    n recipes takes memory and time in proportion to n, where a table of each recipe's own would take n squared. Where
    lineages part, one of them goes on with a copy. Of the tables of a population those that were used last are kept;
    the others are let go, and made again by who needs them.

    Args:
        intermediates: those that the recipe takes itself, by name.

    Raises:
        RecipeError: two that differ have the same name.
    """

    def __init__(self, intermediates: Iterable[tuple[str, Stage]]) -> None:
        self._intermediates = tuple(intermediates)
        self._size, self._table = 0, _Table({})
        self._build()

    def get(self, name: str) -> Stage | None:
        """The intermediate of that name."""
        entries = self._table.entries
        if entries is None:
            entries = self._build()
        _touch(self._table)
        return self._own(entries, name)

    def _build(self) -> dict[str, tuple[int, Stage]]:
        """Find them, starting from those of the intermediate that has the most; returns the table's entries."""
        entries: dict[str, tuple[int, Stage]] = {}
        self._size, self._table = 0, _Table(entries)
        for _, stage in self._intermediates:
            index = stage.known_index
            known = index._table.entries if index is not None else None
            if index is not None and known is not None and index._size > self._size:
                self._size, self._table, entries = index._size, index._table, known
        for name, stage in self._intermediates:
            entries = self._add(entries, name, stage)
        _touch(self._table)
        return entries

    def _own(self, entries: dict[str, tuple[int, Stage]], name: str) -> Stage | None:
        place, recipe = entries.get(name, (self._size, None))
        return recipe if place < self._size else None

    def _add(self, entries: dict[str, tuple[int, Stage]], name: str, recipe: Stage) -> dict[str, tuple[int, Stage]]:
        """Add an intermediate and those that it depends on, as far as they are not there; returns the entries."""
        todo = [(name, recipe)]
        seen = set[tuple[str, int]]()
        while todo:
            name, recipe = todo.pop()
            known = self._own(entries, name)
            if known is recipe or (name, id(recipe)) in seen:  # what it depends on is there as well
                continue
            if known is None:
                entries = self._append(entries, name, recipe)
            elif not known.equals_alone(recipe):
                raise RecipeError(f"two intermediates are called {name!r}", "one recipe for a name")
            seen.add((name, id(recipe)))
            todo += recipe.intermediates
        return entries

    def _append(self, entries: dict[str, tuple[int, Stage]], name: str, recipe: Stage) -> dict[str, tuple[int, Stage]]:
        place, found = entries.get(name, (-1, None))
        if found is not recipe or place != self._size:  # another recipe's has not gone this way
            if len(entries) > self._size:
                entries = {key: entry for key, entry in entries.items() if entry[0] < self._size}
                self._table = _Table(entries)
            entries[name] = self._size, recipe
        self._size += 1
        return entries


def _touch(table: _Table) -> None:
    """Make a table the one used last, and let go of what was not used for longest."""
    _USED[id(table)] = weakref.ref(table)
    _USED.move_to_end(id(table))
    while len(_USED) > MOST_TABLES:
        _, oldest = _USED.popitem(last=False)
        gone = oldest()
        if gone is not None:
            gone.entries = None

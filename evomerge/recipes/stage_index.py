"""Which intermediates a recipe depends on, by name, told without walking the lineage behind it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from evomerge.errors import RecipeError


class Stage(Protocol):
    """What an index asks of a recipe."""

    @property
    def intermediates(self) -> tuple[tuple[str, Any], ...]:
        """Those that it takes itself, by name."""

    def stage_index(self) -> StageIndex:
        """All that it depends on."""

    def equals_alone(self, other: Any) -> bool:
        """Whether another is the same but for the content of its intermediates."""


class StageIndex:
    """The intermediates of a recipe, direct and further ones, by name.

    Recipes of one lineage share a table to which each appends, and know how many of its entries are theirs: a chain of
    n recipes takes memory and time in proportion to n, where a table of each recipe's own would take n squared.
    """

    def __init__(self) -> None:
        self._table: dict[str, tuple[int, Stage]] = {}
        self._size = 0

    @classmethod
    def of(cls, intermediates: Iterable[tuple[str, Stage]]) -> StageIndex:
        """That of a recipe with these intermediates.

        Raises:
            RecipeError: two that differ have the same name.
        """
        given = [(name, recipe, recipe.stage_index()) for name, recipe in intermediates]
        largest = max(given, key=lambda entry: entry[2]._size)[2] if given else cls()
        index = cls()
        index._table, index._size = largest._table, largest._size
        for name, recipe, _ in given:
            index._add(name, recipe)
        return index

    def get(self, name: str) -> Stage | None:
        """The intermediate of that name."""
        place, recipe = self._table.get(name, (self._size, None))
        return recipe if place < self._size else None

    def _add(self, name: str, recipe: Stage) -> None:
        """Add an intermediate and those that it depends on, as far as they are not there."""
        todo = [(name, recipe)]
        seen = set[tuple[str, int]]()
        while todo:
            name, recipe = todo.pop()
            known = self.get(name)
            if known is recipe or (name, id(recipe)) in seen:  # what it depends on is there as well
                continue
            if known is None:
                self._append(name, recipe)
            elif not known.equals_alone(recipe):
                raise RecipeError(f"two intermediates are called {name!r}", "one recipe for a name")
            seen.add((name, id(recipe)))
            todo += recipe.intermediates

    def _append(self, name: str, recipe: Stage) -> None:
        place, found = self._table.get(name, (-1, None))
        if found is not recipe or place != self._size:  # another recipe's has not gone this way
            if len(self._table) > self._size:
                self._table = {key: entry for key, entry in self._table.items() if entry[0] < self._size}
            self._table[name] = self._size, recipe
        self._size += 1

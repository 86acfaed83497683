"""Groups of units that may change places, and orders of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Indices = NDArray[np.int64]

KINDS: Mapping[str, str] = {
    "stream": "the width of the residual stream",
    "mlp": "hidden units of feed-forward layers",
    "heads": "attention heads",
    "query_key": "dimensions of queries and keys within a head",
    "value": "dimensions of values within a head",
    "pooler": "units of a pooler",
    "dense": "hidden units of a head of a task",
}
"""What may change places."""


class Part(NamedTuple):
    """What one axis of a tensor, or a stretch of it, runs over.

    Attributes:
        kind: of `KINDS`, or of an attention layer `query`, `key`, `value` or `context` (the heads' values side by side,
            which its output is made of).
        layer: its number; ``None`` outside the layers.
    """

    kind: str
    layer: int | None = None

    @property
    def group(self) -> Part:
        """The units that it is ordered with."""
        return Part("heads", self.layer) if self.kind in ("query", "key", "value", "context") else self


class Axis(NamedTuple):
    """An axis of a tensor.

    Attributes:
        size: its length.
        stretches: the parts on it, each with the places it takes; what is in none of them stays where it is.
    """

    size: int
    stretches: tuple[tuple[Part, Indices], ...] = ()


@dataclass(frozen=True)
class Units:
    """A group of units that may change places freely: `size` of them."""

    size: int

    def identity(self) -> UnitOrder:
        """Every unit in its place."""
        return UnitOrder(np.arange(self.size))

    def random(self, rng: np.random.Generator, free: frozenset[str]) -> UnitOrder:
        """Any order."""
        return UnitOrder(rng.permutation(self.size))


@dataclass(frozen=True)
class Heads:
    """The units of an attention layer: `groups` heads of keys and values, each read by `queries` heads of queries.

    Groups change places with their queries, queries within their group. The dimensions of a head's values change places
    in all that its group's queries give; those of queries and keys too, where no rotary embedding or norm
    tells them apart.

    Attributes:
        groups: heads of keys and values (`num_key_value_heads`).
        queries: heads of queries for each.
        width: dimensions of a head.
    """

    groups: int
    queries: int
    width: int

    def identity(self) -> HeadOrder:
        """Every head and dimension in its place."""
        return HeadOrder(
            np.arange(self.groups),
            np.tile(np.arange(self.queries), (self.groups, 1)),
            np.tile(np.arange(self.width), (self.groups, 1)),
            np.tile(np.arange(self.width), (self.groups, 1)),
        )

    def random(self, rng: np.random.Generator, free: frozenset[str]) -> HeadOrder:
        """Any order of the kinds that are free."""

        def rows(kind: str, size: int) -> Indices:
            shuffled = [rng.permutation(size) if kind in free else np.arange(size) for _ in range(self.groups)]
            return np.stack(shuffled)

        groups = rng.permutation(self.groups) if "heads" in free else np.arange(self.groups)
        return HeadOrder(groups, rows("heads", self.queries), rows("query_key", self.width), rows("value", self.width))


@dataclass(frozen=True)
class UnitOrder:
    """An order of units: the i-th of the aligned model is the ``units[i]``-th of the model."""

    units: Indices

    def index(self, kind: str) -> Indices:
        """Where each place of a part comes from."""
        return self.units


@dataclass(frozen=True)
class HeadOrder:
    """An order of the units of an attention layer; of each the place in the model that it comes from.

    Attributes:
        groups: shape ``(groups,)``.
        queries: shape ``(groups, queries)``, within the group that comes here.
        query_key, value: shape ``(groups, width)``, within a head of the group that comes here.
    """

    groups: Indices
    queries: Indices
    query_key: Indices
    value: Indices

    def index(self, kind: str) -> Indices:
        """Where each place of a part comes from."""
        inner = self.value if kind in ("value", "context") else self.query_key
        width = inner.shape[1]
        if kind in ("key", "value"):
            places: Indices = self.groups[:, None] * width + inner
            return places.ravel()
        heads = self.groups[:, None] * self.queries.shape[1] + self.queries
        places = heads[:, :, None] * width + inner[:, None, :]
        return places.ravel()


Group = Units | Heads
GroupOrder = UnitOrder | HeadOrder
Order = dict[Part, GroupOrder]
"""An order for every group of a model."""


@dataclass(frozen=True)
class Symmetries:
    """What of a model may change places.

    Attributes:
        groups: the units, by the part that names them.
        axes: of every tensor that has any of them on an axis, by name.
        free: the kinds that change places; of the others every unit stays.
    """

    groups: Mapping[Part, Group]
    axes: Mapping[str, tuple[Axis, ...]]
    free: frozenset[str] = field(default=frozenset(KINDS))

    def movable(self) -> tuple[Part, ...]:
        """The groups of which anything changes places."""
        return tuple(part for part, group in self.groups.items() if self._moves(part, group))

    def _moves(self, part: Part, group: Group) -> bool:
        if isinstance(group, Units):
            return part.kind in self.free and group.size > 1
        return bool(self.free & {"heads", "query_key", "value"})

    def identity(self) -> Order:
        """Every unit in its place."""
        return {part: group.identity() for part, group in self.groups.items()}

    def random(self, rng: np.random.Generator) -> Order:
        """A random order of all that is free."""
        movable = set(self.movable())
        return {
            part: group.random(rng, self.free) if part in movable else group.identity()
            for part, group in self.groups.items()
        }

    def apply(self, name: str, tensor: torch.Tensor, order: Order, except_axis: int | None = None) -> torch.Tensor:
        """A tensor of the model with its units in order: the same numbers in other places, bit for bit.

        Args:
            name: of the tensor; one that has no units is returned as it is.
            tensor: of any dtype.
            order: of all groups.
            except_axis: an axis to leave as it is.
        """
        for number, axis in enumerate(self.axes.get(name, ())):
            if axis.stretches and number != except_axis:
                tensor = tensor.index_select(number, torch.from_numpy(source_of(axis, order)))
        return tensor


def source_of(axis: Axis, order: Order) -> Indices:
    """Where each place of an axis comes from."""
    source = np.arange(axis.size)
    for part, places in axis.stretches:
        source[places] = places[order[part.group].index(part.kind)]
    return source


def is_identity(order: Order) -> bool:
    """Whether every unit is in its place."""
    return all(
        bool(np.array_equal(own.index(kind), np.arange(len(own.index(kind)))))
        for part, own in order.items()
        for kind in (("query", "key", "value", "context") if isinstance(own, HeadOrder) else (part.kind,))
    )

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
    "experts": "experts of a mixture",
    "expert_units": "hidden units within an expert",
}
"""What may change places."""


class Part(NamedTuple):
    """What one axis of a tensor, or a stretch of it, runs over.

    Attributes:
        kind: of `KINDS` (of an expert's layer `experts` for its rows of the router, and `expert_units`), or of an
            attention layer `query`, `key`, `value` or `context` (the heads' values side by side, which its output is
            made of).
        layer: its number; ``None`` outside the layers.
    """

    kind: str
    layer: int | None = None

    @property
    def group(self) -> Part:
        """The units that it is ordered with."""
        if self.kind == "expert_units":
            return Part("experts", self.layer)
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
class Experts:
    """The experts of a mixture: they change places with their rows of the router, hidden units within their expert.

    Attributes:
        count: of experts.
        width: hidden units of each.
    """

    count: int
    width: int

    def identity(self) -> ExpertOrder:
        """Every expert and unit in its place."""
        return ExpertOrder(np.arange(self.count), np.tile(np.arange(self.width), (self.count, 1)))

    def random(self, rng: np.random.Generator, free: frozenset[str]) -> ExpertOrder:
        """Any order of the kinds that are free."""
        order = rng.permutation(self.count) if "experts" in free else np.arange(self.count)
        within = [rng.permutation(self.width) if "expert_units" in free else np.arange(self.width) for _ in order]
        return ExpertOrder(order, np.stack(within))


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


@dataclass(frozen=True)
class ExpertOrder:
    """An order of a mixture's experts; of each the place in the model that it comes from.

    Attributes:
        experts: shape ``(count,)``.
        units: shape ``(count, width)``, within the expert that comes here.
    """

    experts: Indices
    units: Indices

    def index(self, kind: str) -> Indices:
        """Where each place of a part comes from."""
        if kind == "experts":
            return self.experts
        places: Indices = self.experts[:, None] * self.units.shape[1] + self.units
        return places.ravel()


Group = Units | Heads | Experts
GroupOrder = UnitOrder | HeadOrder | ExpertOrder
Order = dict[Part, GroupOrder]
"""An order for every group of a model."""


@dataclass(frozen=True)
class Symmetries:
    """What of a model may change places.

    Attributes:
        groups: the units, by the part that names them.
        axes: of every tensor that has any of them on an axis, by name.
        free: the kinds that change places; of the others every unit stays.
        stacked: tensors that hold all experts of a layer, of shape ``(experts, a, b)``, and which axis the hidden units
            are on. Their `axes` are those of the matrix that `matrix` makes of them.
    """

    groups: Mapping[Part, Group]
    axes: Mapping[str, tuple[Axis, ...]]
    free: frozenset[str] = field(default=frozenset(KINDS))
    stacked: Mapping[str, int] = field(default_factory=dict)

    def movable(self) -> tuple[Part, ...]:
        """The groups of which anything changes places."""
        return tuple(part for part, group in self.groups.items() if self._moves(part, group))

    def _moves(self, part: Part, group: Group) -> bool:
        if isinstance(group, Units):
            return part.kind in self.free and group.size > 1
        if isinstance(group, Experts):
            return bool(self.free & {"experts", "expert_units"})
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
        if name in self.stacked and tensor.dim() == 3:
            ordered = self.apply(name, self.matrix(name, tensor), order, except_axis)
            width = tensor.shape[self.stacked[name]]
            ordered = ordered.view(tensor.shape[0], width, -1)
            return ordered if self.stacked[name] == 1 else ordered.transpose(1, 2).contiguous()
        for number, axis in enumerate(self.axes.get(name, ())):
            if axis.stretches and number != except_axis:
                tensor = tensor.index_select(number, torch.from_numpy(source_of(axis, order)))
        return tensor

    def matrix(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of all experts as a matrix with a row for each hidden unit of each; others as they are."""
        if name not in self.stacked or tensor.dim() != 3:
            return tensor
        rows = tensor if self.stacked[name] == 1 else tensor.transpose(1, 2)
        return rows.reshape(-1, rows.shape[-1])


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
        for kind in _kinds_of(part, own)
    )


def _kinds_of(part: Part, own: GroupOrder) -> tuple[str, ...]:
    if isinstance(own, HeadOrder):
        return "query", "key", "value", "context"
    return ("experts", "expert_units") if isinstance(own, ExpertOrder) else (part.kind,)

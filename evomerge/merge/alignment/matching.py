"""Weight matching: the order of a model's units in which its weights are nearest to a reference's.

Git Re-Basin (arXiv 2209.04836, section 3.2, algorithm 1): of all orders P find the one of the largest sum of inner
products ``<A, P(B)>`` over all tensors, which is that of the smallest Euclidean distance. One group of units after the
other takes its best order while the others keep theirs, each by a linear assignment, until no group gains: a coordinate
descent, whose end depends on where it begins and in which order it goes. Several are tried.

Heads and experts are assignments within assignments (`assigning`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evomerge.errors import PoolError
from evomerge.merge.alignment.assigning import Products, assignment, best_experts, best_heads
from evomerge.merge.alignment.orders import (
    Experts,
    GroupOrder,
    Heads,
    Order,
    Part,
    Symmetries,
    UnitOrder,
    is_identity,
)

Weights = Callable[[str], torch.Tensor]
"""A model's tensor by name, in any float dtype."""

_GAIN = 1e-7
"""A group's gain below this share of the product of its norms is rounding."""
_SWEEPS = 100


@dataclass(frozen=True)
class Matching:
    """What was found.

    Attributes:
        order: of the model's units.
        before, after: cosine of reference and model over all tensors with units that move, as they were and in order.
        begun: how many searches were made.
        chosen: which of them found the order, from 0.
        sweeps: through all groups that it took.
    """

    order: Order
    before: float
    after: float
    begun: int
    chosen: int
    sweeps: int

    @property
    def moved(self) -> bool:
        """Whether any unit changes its place."""
        return not is_identity(self.order)


def match(
    symmetries: Symmetries,
    reference: Weights,
    model: Weights,
    *,
    starts: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Matching:
    """Find the order of a model's units in which it is nearest to a reference.

    The first search begins with what fixed axes say of each group (tokens of the width, the width of hidden units, and
    so on); the others with every unit in its place and the groups in random sequence, as in the paper. The nearest of
    what they end with is kept, the earliest of equals; the order as it is, where nothing is nearer.

    Args:
        symmetries: what may change places.
        reference, model: their tensors, by the names of `symmetries`.
        starts: searches, at least 1.
        seed: of the sequences.
        progress: told after each search how many are done and their number.

    Raises:
        PoolError: a tensor holds NaN or infinity, or numbers too large to be multiplied.
    """
    search = _Search(symmetries, reference, model)
    norms = search.norms()
    identity = symmetries.identity()
    at_first = best_value = search.value(identity)
    best, chosen, sweeps = identity, 0, 0
    movable = symmetries.movable()
    for number in range(starts):
        rng = np.random.default_rng([seed, number])
        sequence = [movable[at] for at in (range(len(movable)) if number == 0 else rng.permutation(len(movable)))]
        found = search.anchored() if number == 0 else dict(identity)
        taken = search.descend(found, sequence)
        value = search.value(found)
        if value > best_value + _GAIN * norms:
            best, best_value, chosen, sweeps = found, value, number, taken
        if progress is not None:
            progress(number + 1, starts)
    return Matching(best, at_first / norms, best_value / norms, starts, chosen, sweeps)


class _Search:
    """Two models' tensors, and what they say of each other's units."""

    def __init__(self, symmetries: Symmetries, reference: Weights, model: Weights) -> None:
        self._symmetries = symmetries
        self._reference, self._model = (
            lambda name: symmetries.matrix(name, reference(name)),
            lambda name: symmetries.matrix(name, model(name)),
        )
        self._uses: dict[Part, list[tuple[str, int]]] = {part: [] for part in symmetries.groups}
        for name, axes in symmetries.axes.items():
            for number, axis in enumerate(axes):
                for part in dict.fromkeys(part.group for part, _ in axis.stretches):
                    self._uses[part].append((name, number))
        # Tensors with one group on two axes: what moving it gains is not a sum over its units. Nor are products of all
        # units of all experts with one another kept.
        self._twice = {
            part: sorted(
                {
                    name
                    for name, _ in uses
                    if isinstance(symmetries.groups[part], Experts) or sum(name == other for other, _ in uses) > 1
                }
            )
            for part, uses in self._uses.items()
        }

    def norms(self) -> float:
        """The product of both models' norms over all tensors with units; `PoolError` where one is no number."""
        squares = [0.0, 0.0]
        for name in self._symmetries.axes:
            for at, weights in enumerate((self._reference, self._model)):
                found = float(weights(name).double().square().sum())
                if not np.isfinite(found):
                    raise PoolError(
                        f"tensor {name!r} of the {('reference', 'model')[at]} holds NaN or infinity",
                        "models whose weights are numbers",
                        "leave the model out",
                    )
                squares[at] += found
        return max(float(np.sqrt(squares[0]) * np.sqrt(squares[1])), 1e-300)

    def value(self, order: Order) -> float:
        """The sum of inner products of all tensors, the model's in order."""
        return sum(self._product(name, order) for name in self._symmetries.axes)

    def _product(self, name: str, order: Order) -> float:
        own = self._symmetries.apply(name, self._model(name), order)
        return float((self._reference(name).double() * own.double()).sum())

    def anchored(self) -> Order:
        """An order to begin with: each group by those tensors whose other axes are in order already.

        The group that most entries speak of comes first. A width is so ordered by the embeddings of tokens or pixels,
        hidden units by the ordered width.
        """
        order = self._symmetries.identity()
        waiting = list(self._symmetries.movable())
        while waiting:
            known = {part: self._known_uses(part, set(waiting)) for part in waiting}
            entries = {part: sum(self._reference(name).numel() for name, _ in uses) for part, uses in known.items()}
            part = max(waiting, key=lambda part: entries[part])  # the first of equals
            order[part] = self._best(part, order, self._products(part, order, known[part]), known[part])
            waiting.remove(part)
        return order

    def _known_uses(self, part: Part, waiting: set[Part]) -> list[tuple[str, int]]:
        """Where a group is, with no other group on other axes that is still waiting, nor itself."""
        uses = []
        for name, number in self._uses[part]:
            others = [axis for at, axis in enumerate(self._symmetries.axes[name]) if at != number]
            if not any(own.group in waiting for axis in others for own, _ in axis.stretches):
                uses.append((name, number))
        return uses

    def descend(self, order: Order, sequence: Sequence[Part]) -> int:
        """Give every group its best order in turn, in place, until none gains; returns the number of sweeps."""
        due = set(sequence)  # a group is due again once another on its tensors has moved
        for sweep in range(_SWEEPS):
            if not due:
                return sweep
            for part in sequence:
                if part not in due:
                    continue
                due.discard(part)
                products = self._products(part, order, self._uses[part])
                found = self._best(part, order, products, self._uses[part])
                if self._gain(part, order, found, products) > _GAIN * self._size(part):
                    order[part] = found
                    due |= self._neighbours(part) & set(sequence)
        return _SWEEPS

    def _neighbours(self, part: Part) -> set[Part]:
        names = {name for name, _ in self._uses[part]}
        found = {own.group for name in names for axis in self._symmetries.axes[name] for own, _ in axis.stretches}
        return found if self._twice[part] else found - {part}

    def _size(self, part: Part) -> float:
        """The product of both models' norms over a group's tensors."""
        names = dict.fromkeys(name for name, _ in self._uses[part])
        own = sum(float(self._reference(name).float().square().sum()) for name in names)
        other = sum(float(self._model(name).float().square().sum()) for name in names)
        return float(np.sqrt(own * other))

    def _products(self, part: Part, order: Order, uses: Sequence[tuple[str, int]]) -> dict[str, Products]:
        """By part of a group, the inner products of the reference's units (rows) and the model's (columns).

        All other axes of the model's tensors are in order. Of experts there are none: see `best_experts`.
        """
        group = self._symmetries.groups[part]
        if isinstance(group, Experts):
            return {}
        kinds = ("query", "key", "value", "context") if isinstance(group, Heads) else (part.kind,)
        sizes = {kind: len(order[part].index(kind)) for kind in kinds}
        found = {kind: np.zeros((size, size)) for kind, size in sizes.items()}
        for kind, ours, theirs, name in self._sides(order, uses):
            found[kind] += (ours @ theirs.T).double().numpy()
            if not np.isfinite(found[kind]).all():
                raise PoolError(f"the weights in {name!r} are too large to be multiplied in float32", "smaller ones")
        return found

    def _sides(
        self, order: Order, uses: Sequence[tuple[str, int]]
    ) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, str]]:
        """The kind of each stretch, the reference's units on it, the model's with all other axes in order, the name."""
        for name, number in uses:
            axis = self._symmetries.axes[name][number]
            ours = self._reference(name).float().movedim(number, 0).reshape(axis.size, -1)
            theirs = self._symmetries.apply(name, self._model(name).float(), order, except_axis=number)
            theirs = theirs.movedim(number, 0).reshape(axis.size, -1)
            for own, places in axis.stretches:
                rows = torch.from_numpy(places)
                yield own.kind, ours[rows], theirs[rows], name

    def _best(
        self, part: Part, order: Order, products: Mapping[str, Products], uses: Sequence[tuple[str, int]]
    ) -> GroupOrder:
        group = self._symmetries.groups[part]
        if isinstance(group, Experts):
            sides = ((kind, ours, theirs) for kind, ours, theirs, _ in self._sides(order, uses))
            return best_experts(group, sides, self._symmetries.free)
        if isinstance(group, Heads):
            return best_heads(group, products, self._symmetries.free)
        return UnitOrder(assignment(products[part.kind])[0])

    def _gain(self, part: Part, order: Order, found: GroupOrder, products: Mapping[str, Products]) -> float:
        """What a group's new order adds to the sum of inner products."""
        gained = 0.0
        twice = self._twice[part]
        if twice:  # what these say is left out of the sums over units, and computed as it is
            others = [use for use in self._uses[part] if use[0] not in twice]
            products = self._products(part, order, others)
            moved = {**order, part: found}
            gained += sum(self._product(name, moved) - self._product(name, order) for name in twice)
        for kind, values in products.items():
            rows = np.arange(len(values))
            gained += float((values[rows, found.index(kind)] - values[rows, order[part].index(kind)]).sum())
        return gained

"""What most merge methods come down to: a sum of tensors, or of what is left of task vectors, with one factor each.

A method says which `Mix` its parameters mean for a tensor, given the tensor's `Statistics`; the engine carries it out
with fused kernels on the CPU (`cpu_mix`) and on GPUs (`triton_mix`), and with torch operations elsewhere (`torch_mix`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

LARGEST = 0x7F7FFFFF
"""The bits of the largest finite float32."""


class Cut(NamedTuple):
    """Which elements of a task vector stay, by the bits of their magnitude as float32.

    The bits of nonnegative floats order like the floats. An element of magnitude bits `m` at flat index `e` stays when
    ``m > low or (m == low and e < low_end)`` and ``m < high or (m == high and e >= high_start)``: an exact number of
    elements, of equal magnitudes the first.
    """

    low: int
    low_end: int
    high: int = LARGEST
    high_start: int = 0


def cut_between(first: int, last: int, count: int, at: Callable[[int], tuple[int, int]]) -> Cut | None:
    """The cut that keeps the ranks ``first <= rank < last`` of `count`; ``None`` where that is all but zeros.

    `at` gives the magnitude bits of a rank, and one more than the index of its element.
    """
    last = min(last, count)
    assert 0 <= first < last, "a cut keeps something"
    low, low_end = at(last - 1) if last < count else (0, count)
    if first == 0:
        return Cut(low, low_end) if low > 0 else None
    return Cut(low, low_end, *at(first - 1))


class DeviceCut(NamedTuple):
    """A `Cut` that a device has found and the host has not asked for.

    Attributes:
        limits: its four fields, with `high` beyond `LARGEST` where none of the largest are dropped: int64 of shape
            ``(4,)``, on the device.
        has_band: whether some may be.
    """

    limits: torch.Tensor
    has_band: bool


class Pruning(NamedTuple):
    """Which elements of a task vector stay at random, by the rank of their magnitude in their row (MagPrune).

    Attributes:
        ranks: of every element, as `Statistics.row_ranks` gives them.
        bounds: by rank, what random numbers must not exceed (`masks.kept_up_to`): int32, on the device of `ranks`.
        by_probability: whether what stays is divided by its probability of staying.
    """

    ranks: torch.Tensor
    bounds: torch.Tensor
    by_probability: bool


class Term(NamedTuple):
    """One input of a mix.

    Attributes:
        weight: factor on the input, or on what is left of its task vector; an input of weight zero is not read. A
            tensor of no dimension, on the device of the inputs, where only that knows it; `vote` is then given.
        cut: which elements stay; ``None`` for all.
        density: probability that an element stays; ``None`` for all.
        vote: what an agreeing element adds to the divisor of `Mix.normalize`; `weight` for ``None``.
        pruning: which elements stay by rank; all terms have one or none has, and the CPU's kernels take none.
    """

    weight: float | torch.Tensor
    cut: Cut | DeviceCut | None = None
    density: float | None = None
    vote: float | None = None
    pruning: Pruning | None = None

    @property
    def is_used(self) -> bool:
        """Whether the input is read."""
        return isinstance(self.weight, torch.Tensor) or self.weight != 0


class Mix(NamedTuple):
    """``scale * sum_i weight_i x_i / divisor``; with `differences`, of ``x_i - base`` and added to the base.

    Attributes:
        terms: one per input, in order.
        differences: whether terms are differences from the base, which the result is added to.
        elect: sum only elements whose sign is that of the weighted sum, positive where it is zero (TIES).
        normalize: with `elect`, divide each element by the votes of the terms that agree.
        divisor: what the sum is divided by (without `elect`).
        scale: factor on the sum.
    """

    terms: tuple[Term, ...]
    differences: bool = False
    elect: bool = False
    normalize: bool = False
    divisor: float = 1.0
    scale: float = 1.0


def copy_of(index: int, inputs: int) -> Mix:
    """The mix that is one of its inputs, exactly."""
    return Mix(tuple(Term(1.0 if i == index else 0.0) for i in range(inputs)))


def weighted(weights: Sequence[float], **options: float | bool) -> Mix:
    """A mix of plain terms."""
    return Mix(tuple(Term(float(weight)) for weight in weights), **options)  # type: ignore[arg-type]


class Scopes(Protocol):
    """Ranks of magnitudes over more than one tensor: over the layer or the whole model that a tensor is of."""

    def size(self, index: int, scope: str) -> int:
        """Number of elements of a scope that the tensor of input `index` is in."""

    def place(self, index: int, rank: int, scope: str) -> tuple[int, int]:
        """The magnitude bits of a rank in a scope, and how many of the tensor's elements of this magnitude have that
        rank or one before, as one more than the index of the last of them; 0 for none, `count` where the rank is in
        a later tensor."""

    def least_score(self, index: int, density: float, scope: str, rank_one: bool) -> float:
        """The least of the scores ``v tau^2`` (`ota.Curvature`) of a scope that are kept of input `index`, for a share
        `density` of its elements that have statistics: the lower end of a bin of 1/128 of it."""

    def values_at(
        self,
        indices: Sequence[int],
        scope: str,
        of: Hashable,
        score: Callable[[Sequence[Any]], Sequence[Any]],
        ranks: Callable[[int], Sequence[int]],
    ) -> list[tuple[float, ...]]:
        """The values of some ranks, by rising value and exactly, over the tensors of a scope.

        Args:
            indices: of the inputs whose task vectors count.
            scope: that the tensor is in, beyond itself.
            of: what the values are called: what they depend on besides the sources.
            score: makes them of blocks of these task vectors, element by element: one or more of float32, numpy's on
                the CPU and tensors elsewhere.
            ranks: gives the ranks, from 0 on, of the number of elements in the scope.

        Returns:
            For each that `score` makes, the values of the ranks.
        """


class Statistics(Protocol):
    """What a method may ask of one tensor's inputs; answers are kept for the pool's other candidates.

    Magnitudes, ranks and cuts are of task vectors, computed as float32 ``input - base``.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""

    @property
    def count(self) -> int:
        """Number of its elements."""

    @property
    def has_base(self) -> bool:
        """Whether there is a base: a method whose base is optional asks."""

    def gram(self, differences: bool = False) -> NDArray[np.float64]:
        """Inner products of the inputs, or of their task vectors: float64, of shape ``(inputs, inputs)``."""

    def size(self, index: int, scope: str) -> int:
        """Number of elements that a rank of input `index` is one of, in a scope (`Scopes`)."""

    def cut(self, index: int, first: int, last: int, scope: str = "tensor") -> Cut | DeviceCut | None:
        """What keeps of input `index` the ranks ``first <= rank < last`` by falling magnitude, of equals the first ones
        first; ``None`` where that is all but zeros. Of a scope beyond the tensor those of its elements that are among
        them there."""

    def magnitude_kept(self, index: int, cut: Cut | DeviceCut | None, density: float | None) -> float | torch.Tensor:
        """The share of the sum of magnitudes of input `index` that a cut and a random mask leave; 1 for a zero sum.

        On an accelerator a float64 tensor of no dimension that stays there, NaN where the sum is not finite.
        """

    def row_ranks(self, index: int) -> torch.Tensor | None:
        """The rank of every element of input `index` in its row, by falling magnitude and of equals the earlier first:
        a flat tensor for `Pruning`; ``None`` on the CPU, where methods rank row by row in the cache."""

"""Statistics that are computed once per pool: the candidates of a search share their sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.scope_values import ScopeValues, Score
from evomerge.merge.execution.scopes import ScopeRanks
from evomerge.merge.execution.score_scopes import ScoreBins
from evomerge.merge.methods import Method
from evomerge.merge.methods.derived import Derived, Pair
from evomerge.merge.mixes.backend import Backend, backend_of
from evomerge.merge.mixes.cpu_statistics import CpuStatistics, Ranks, Window
from evomerge.merge.mixes.magnitude_order import row_width
from evomerge.merge.mixes.mix import Cut, DeviceCut
from evomerge.merge.mixes.torch_statistics import Bin, TensorStatistics


class NotedStatistics:
    """`mix.Statistics` of a tensor, looked up in notes before they are computed.

    Args:
        inputs, base: flat tensors on one device.
        shape: of the tensor.
        keys: mask keys of the inputs.
        names: what the inputs and, last, the base are called in the notes.
        notes: of the pool.
        window: how much of mapped tensors on the CPU may take memory at a time.
        pairs: gives the factors of the inputs' adapters, for methods that take them.
        scopes: ``scopes(index, scope)`` gives the ranks in the layer or model that an input is of; ``None`` where the
            tensor counts as all of it.
        scores: ``scores(index, scope, rank_one)`` gives the scores there, likewise.
        values: ``values(indices, scope)`` gives what is computed there of several inputs, likewise.

    Attributes:
        tensors: the inputs and the base.
    """

    def __init__(
        self,
        inputs: Sequence[torch.Tensor],
        base: torch.Tensor | None,
        shape: tuple[int, ...],
        keys: Sequence[int],
        names: Sequence[Hashable],
        notes: Notes,
        window: Window | None = None,
        pairs: Callable[[], Sequence[Pair | None]] = tuple,
        scopes: Callable[[int, str], ScopeRanks] | None = None,
        scores: Callable[[int, str, bool], ScoreBins] | None = None,
        values: Callable[[Sequence[int], str], ScopeValues] | None = None,
    ) -> None:
        self.tensors, self._pairs = (inputs, base), pairs
        self._names, self._base = tuple(names[: len(inputs)]), tuple(names[len(inputs) :])
        self.keys, self._notes, self._window = tuple(keys), notes, window
        self._scopes, self._scores, self._values = scopes, scores, values
        self.shape, self.has_base = shape, base is not None

    @cached_property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @cached_property
    def _backend(self) -> Backend:
        inputs, base = self.tensors
        return backend_of(inputs[0].device, [tensor.dtype for tensor in (*inputs, base) if tensor is not None])

    @property
    def _stays(self) -> bool:
        """Whether what a candidate asks for stays on an accelerator: too small to be kept, and never waited for."""
        return self.tensors[0][0].device.type != "cpu"

    @cached_property
    def _found(self) -> CpuStatistics | TensorStatistics:
        """What computes them: many methods ask for nothing."""
        inputs, base = self.tensors
        if self._backend is Backend.CPU:
            return CpuStatistics(inputs, base, self.shape, self.keys, self._window)
        kind = TensorStatistics
        if self._backend is Backend.TRITON:
            from evomerge.merge.mixes.triton_statistics import TritonStatistics as kind  # there is Triton
        return kind(inputs, base, self.shape, self.keys)

    def gram(self, differences: bool = False) -> NDArray[np.float64]:
        """Inner products of the inputs, or of their task vectors."""
        base = self._base if differences else ()
        return self._notes.small(("gram", *self._names, base), lambda: self._found.gram(differences), lasting=True)

    def size(self, index: int, scope: str) -> int:
        """Number of elements that a rank is one of."""
        wide = self._wide(index, scope)
        return self.count if wide is None else wide.members.total

    def place(self, index: int, rank: int, scope: str) -> tuple[int, int]:
        """The magnitude bits of a rank in a scope beyond the tensor, and where in the tensor it ends; see `Scopes`."""
        wide = self._wide(index, scope)
        assert wide is not None, "asked for what more than one tensor has"
        return wide.place(self._tensor(index), rank)

    def least_score(self, index: int, density: float, scope: str, rank_one: bool) -> float:
        """The least score of a scope beyond the tensor that is kept; see `Scopes`."""
        assert self._scores is not None, "asked for what more than one tensor has"
        return self._scores(index, scope, rank_one).least(density)

    def values_at(
        self, indices: Sequence[int], scope: str, of: Hashable, score: Score, ranks: Callable[[int], Sequence[int]]
    ) -> list[tuple[float, ...]]:
        """The values of some ranks in a scope beyond the tensor; see `Scopes`."""
        assert self._values is not None, "asked for what more than one tensor has"
        return self._values(indices, scope).at(of, score, ranks)

    def _wide(self, index: int, scope: str) -> ScopeRanks | None:
        return None if scope == "tensor" or self._scopes is None else self._scopes(index, scope)

    def _tensor(self, index: int) -> str:
        """The name of an input's tensor."""
        name = self._names[index]
        assert isinstance(name, tuple), "it is called by model and tensor"
        return str(name[1])

    def cut(self, index: int, first: int, last: int, scope: str = "tensor") -> Cut | DeviceCut | None:
        """What keeps the ranks from `first` to `last`."""
        wide = self._wide(index, scope)
        if wide is not None:
            return wide.cut(self._tensor(index), first, last)
        name = (self._names[index], *self._base)
        if self._stays:
            return self._cut(name, index, first, last)
        return self._notes.small(("cut", name, first, last), lambda: self._cut(name, index, first, last))

    def _cut(self, name: tuple[Hashable, ...], index: int, first: int, last: int) -> Cut | DeviceCut | None:
        found = self._found
        if not isinstance(found, CpuStatistics):
            return self._cut_by_bins(found, index, first, last)
        order = self._notes.large(("order", name), 4 * self.count, lambda: found.order(index))
        if order is not None:
            return found.cut_from_order(order, index, first, last)
        return found.cut_from(self.ranks(index), index, first, last)

    def ranks(self, index: int) -> Ranks:
        """The histogram of a task vector's magnitudes."""
        name = (self._names[index], *self._base)
        return self._notes.small(("ranks", name), lambda: self._found.ranks(index), lasting=True)

    def bin(self, index: int, number: int, size: int) -> Bin:
        """What a bin of that histogram holds, `size` elements."""

        def find() -> Bin:
            return self._found.bin(index, number, size)

        if number == 0:  # mostly zeros, which may be half of a tensor
            return find()
        key, cost = ("bin", (self._names[index], *self._base), number), 8 * size
        if self._stays:
            return self._notes.on_device(key, cost, find)
        kept = self._notes.large(key, cost, find, at_once=True)
        return kept if kept is not None else find()

    def _cut_by_bins(self, found: TensorStatistics, index: int, first: int, last: int) -> Cut | DeviceCut | None:
        """The cut from what is known of the bins that its ends lie in."""
        return found.cut_from(self.ranks(index), index, first, last, lambda number, size: self.bin(index, number, size))

    def derived(self, method: Method, values: Mapping[str, Any]) -> tuple[torch.Tensor, ...] | None:
        """What a method makes of the sources (`Derived.make`), flat and where these are.

        ``None`` where it would not be kept, and the method has a function that does without.
        """
        made = method.derived
        assert made is not None, "asked for what was declared"
        return self._notes.derived(
            *self._called(method, values),
            self.device,
            lambda: self.make(method, values, self.beside(method, values)),
            changing=made.changing,
            cost=made.nbytes(values, self.count) if method.function is not None else None,
        )

    def note(self, method: Method, values: Mapping[str, Any], made: tuple[torch.Tensor, ...]) -> None:
        """Keep what `make` made, as far as there is room."""
        assert method.derived is not None, "asked for what was declared"
        changing = method.derived.changing
        self._notes.derived(*self._called(method, values), self.device, lambda: made, changing=changing)

    def would_keep(self, method: Method, values: Mapping[str, Any], cost: int) -> bool:
        """Whether what a method makes is not known yet, and there is room for it beside so many bytes."""
        assert method.derived is not None, "asked for what was declared"
        size = method.derived.nbytes(values, self.count)
        return self._notes.would_keep(*self._called(method, values), size + cost, method.derived.changing)

    def beside(self, method: Method, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a method reads of other tensors to make something of these sources (`Derived.beside`)."""
        assert method.derived is not None, "asked for what was declared"
        if method.derived.beside is None or self._values is None:
            return {}
        return method.derived.beside(values, self)

    def make(self, method: Method, values: Mapping[str, Any], beside: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        """What a method makes of the sources and what it reads `beside`, made now; by any thread."""
        inputs, base = self.tensors
        assert method.derived is not None, "asked for what was declared"
        assert base is not None, "methods that need a base declare it"
        return method.derived.make(values, inputs, base, self.shape, self._pairs_for(method.derived), beside)

    def _pairs_for(self, derived: Derived) -> Sequence[Pair | None]:
        """The factors of the inputs' adapters, for a matrix and a method that takes them."""
        return self._pairs() if derived.join is not None and len(self.shape) == 2 else ()

    def factors_of(self, method: Method, values: Mapping[str, Any]) -> Pair | None:
        """The factors of what a method adds to the base (`Derived.factors_of`); ``None`` where it makes none."""
        inputs, base = self.tensors
        if method.derived is None or base is None or method.derived.simple(values, len(inputs)) is not None:
            return None
        return method.derived.factors_of(values, inputs, base, self.shape, self._pairs_for(method.derived))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.tensors[0][0].device

    def _called(self, method: Method, values: Mapping[str, Any]) -> tuple[Hashable, Hashable]:
        """What a method makes is called in the notes: of what, and by which parameters."""
        assert method.derived is not None, "asked for what was declared"
        return ("derived", method.spec.name, *self._names, self._base, self.shape), method.derived.variant(values)

    def row_ranks(self, index: int) -> torch.Tensor | None:
        """The ranks of all elements in their rows; ``None`` on the CPU."""
        found = self._found
        if isinstance(found, CpuStatistics):
            return None
        name = ("row ranks", self._names[index], self._base, self.shape)
        cost = (2 if row_width(self.shape) <= 1 << 16 else 4) * self.count
        return self._notes.on_device(name, cost, lambda: found.row_ranks(index))

    def magnitude_kept(self, index: int, cut: Cut | DeviceCut | None, density: float | None) -> float | torch.Tensor:
        """The share of the sum of magnitudes that a cut and a random mask leave."""
        if self._stays:
            return self._found.magnitude_kept(index, cut, density)
        key = self.keys[index] if density is not None else None
        name = ("kept", self._names[index], self._base, cut, density, key)
        return self._notes.small(name, lambda: self._found.magnitude_kept(index, cut, density))

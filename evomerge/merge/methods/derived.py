"""Methods that make tensors of the sources alone, by costly means, and add these to the base with a factor each.

What is made is noted once per pool (`notes.Notes.derived`), so that a candidate that differs in the factors only costs
what a weighted sum costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from evomerge.merge.methods.sphere import check_finite
from evomerge.merge.mixes.mix import Mix, Scopes, Term, copy_of, weighted

Find = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
Pair = tuple[torch.Tensor, torch.Tensor]
"""Factors ``(b, a)`` of a matrix ``b @ a``, of shapes ``(rows, rank)`` and ``(rank, columns)``."""
Join = Callable[..., Pair]


@dataclass(frozen=True)
class Derived:
    """What a method makes of the sources of a tensor: ``theta_0 + sum_j factor_j D_j``.

    Attributes:
        find: ``find(tasks, **given)`` makes the ``D_j``: of the shape of the task vectors, float32 or float64, one
            tensor or a tuple. `tasks` are finite, float32, on any device and not to be written to.
        given: the parameters that `find` is called with, of all that a merge has; with the sources they decide what
            it makes.
        factors: the factors, from all parameters; as many as `find` makes.
        whole_alone: whether a task vector alone is what `find` makes of it.
        copies: of a tensor, in float64, that `find` has in memory at a time, about and besides those of the inputs.
        join: ``join(parts, **given)`` makes the factors of ``D``, the only one, of a matrix. Where there is such,
            `parts` are the factors of adapters, and task vectors of what is no adapter; `find` is given these too.
        changing: whether a search changes what is given unless told otherwise: what is made by other parameters than
            the first is then kept only when it is asked for again.
        beside: ``beside(values, scopes)`` gives what `find` is called with besides, of tensors beyond this one; it
            depends on the sources and what is `given` alone. Without it `find` takes the tensor for all there is.
        cubic: whether the time that `find` takes of a matrix grows with its shorter side as well as with its elements,
            as that of decompositions does.
    """

    find: Find
    given: Callable[[Mapping[str, Any]], Mapping[str, Hashable]]
    factors: Callable[[Mapping[str, Any]], tuple[float, ...]]
    whole_alone: bool = False
    copies: int = 8
    join: Join | None = None
    changing: bool = False
    cubic: bool = True
    beside: Callable[[Mapping[str, Any], Scopes], Mapping[str, Any]] | None = None

    def simple(self, values: Mapping[str, Any], inputs: int) -> Mix | None:
        """The mix of the inputs themselves, where nothing need be made of them."""
        factors = self.factors(values)
        if not any(factors):
            return weighted([0.0] * inputs, differences=True)
        if inputs > 1 or not self.whole_alone:
            return None
        return copy_of(0, 1) if factors[0] == 1 else weighted(factors, differences=True)

    def variant(self, values: Mapping[str, Any]) -> Hashable:
        """What `find` is called with, in an order of its own: what tells apart what it makes of the same sources."""
        return tuple(sorted(self.given(values).items()))

    def nbytes(self, values: Mapping[str, Any], count: int) -> int:
        """Of what `make` returns for a tensor of so many elements."""
        return 4 * count * len(self.factors(values))

    def mix(self, values: Mapping[str, Any]) -> Mix:
        """The mix of the base and, after it, what was made."""
        return Mix((Term(1.0), *(Term(float(factor)) for factor in self.factors(values))))

    def make(
        self,
        values: Mapping[str, Any],
        inputs: Sequence[torch.Tensor],
        base: torch.Tensor,
        shape: Sequence[int],
        pairs: Sequence[Pair | None] = (),
        beside: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[torch.Tensor, ...]:
        """What `find` makes, flat and as float32.

        Args:
            values: all parameters.
            inputs, base: as many elements as `shape` has, of any merged dtype.
            shape: of the tensor.
            pairs: of every input the factors of its adapter on the base, where it is that; empty where none is known.
            beside: what `find` is called with besides.

        Raises:
            PoolError: task vectors are not finite; of what takes no decomposition, on the CPU only.
        """
        found = self.find(_parts(inputs, base, shape, pairs, self.cubic), **self.given(values), **beside)
        return tuple(part.float().reshape(-1) for part in (found if isinstance(found, tuple) else (found,)))

    def factors_of(
        self,
        values: Mapping[str, Any],
        inputs: Sequence[torch.Tensor],
        base: torch.Tensor,
        shape: Sequence[int],
        pairs: Sequence[Pair | None],
    ) -> Pair | None:
        """The factors of what is added to the base, for a method that makes such of a matrix; as `make`."""
        if self.join is None or len(shape) != 2:
            return None
        b, a = self.join(_parts(inputs, base, shape, pairs, self.cubic), **self.given(values))
        return b.float() * self.factors(values)[0], a.float()


def _parts(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    shape: Sequence[int],
    pairs: Sequence[Pair | None],
    decomposes: bool,
) -> list[Any]:
    """Factors where they are known, else task vectors, which are finite where they are decomposed."""
    origin = base.float().view(tuple(shape))
    known = pairs or [None] * len(inputs)
    parts = [
        x.float().view(tuple(shape)) - origin if pair is None else pair for x, pair in zip(inputs, known, strict=True)
    ]
    if decomposes or origin.device.type == "cpu":  # elsewhere the host would wait; what is no number stays none
        check_finite({i: 0.0 if _is_finite(part) else math.nan for i, part in enumerate(parts)}, len(parts))
    return parts


def _is_finite(part: torch.Tensor | Pair) -> bool:
    return all(bool(torch.isfinite(each).all()) for each in ([part] if isinstance(part, torch.Tensor) else part))

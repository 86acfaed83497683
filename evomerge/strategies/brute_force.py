"""Every genome of a discrete space, once, in an order that looks random."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec, Value
from evomerge.objectives import Objective
from evomerge.protocols import Proposal
from evomerge.strategies.bases.capabilities import KINDS, require


class BruteForce:
    """Proposes every genome of a discrete space exactly once; implements `protocols.Strategy`.

    Genomes are numbered, and their numbers visited as ``start + k * stride`` modulo their count, with a stride that
    shares no factor with it: no memory of what was proposed is needed, and a budget smaller than the space
    is spread over all of it. When all were proposed, `ask` returns nothing and the search ends.

    Args:
        spec: the genes; continuous ones need a resolution or one value only.
        objectives: not used; a search needs one to know what is best.
        seed: of start and stride.
        batch: how many ``ask(None)`` proposes.

    Raises:
        ConfigError: a continuous gene without resolution, no free gene, or arguments out of range.
    """

    asynchronous: ClassVar[bool] = True
    multi_objective: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = KINDS
    learns: ClassVar[bool] = False

    def __init__(self, spec: GenomeSpec, objectives: Sequence[Objective], *, seed: int, batch: int = 16) -> None:
        if batch < 1:
            raise ConfigError(f"strategy.batch is {batch}", "at least 1")
        require(type(self), "brute force", spec, objectives, seed)
        self._spec, self._batch = spec, batch
        self._counts = [_count(gene) for gene in spec]
        self._total = math.prod(self._counts)
        self._next = 0
        self._begin(seed)

    def ask(self, n: int | None = None) -> list[Proposal]:
        """`n` proposals, or a batch; what is left when that is fewer."""
        end = min(self._next + (self._batch if n is None else max(n, 0)), self._total)
        proposals = [self._proposal(k) for k in range(self._next, end)]
        self._next = end
        return proposals

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        """The seed and how many genomes were proposed."""
        return {"seed": self._seed, "next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the genomes that would have come next."""
        self._begin(int(state["seed"]))
        self._next = int(state["next"])

    def _begin(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._seed, self._next = seed, 0
        self._start = _below(self._total, rng)
        self._stride = _below(self._total, rng)
        while math.gcd(self._stride, self._total) != 1:
            self._stride = _below(self._total, rng)

    def _proposal(self, k: int) -> Proposal:
        number = (self._start + k * self._stride) % self._total
        values: list[Value] = []
        for gene, count in zip(self._spec, self._counts, strict=True):
            number, digit = divmod(number, count)
            values.append(_value(gene, digit))
        return Proposal(self._spec.genome(values))


def _below(total: int, rng: np.random.Generator) -> int:
    """A whole number from 0 to `total` - 1, which may have more bits than a machine word."""
    return int.from_bytes(rng.bytes(total.bit_length() // 8 + 8), "little") % total


def _count(gene: Gene) -> int:
    """How many values a gene has."""
    if gene.kind in ("categorical", "boolean"):
        return len(gene.choices) or 2
    if gene.kind == "integer":
        return math.floor(gene.high) - math.ceil(gene.low) + 1
    if gene.low == gene.high:
        return 1
    if gene.resolution is None:
        raise ConfigError(
            f"gene {gene.name!r} is continuous and has no resolution",
            "brute force goes through the values of discrete genes",
            "give the search space a resolution, or choose another strategy",
        )
    return math.floor((gene.high - gene.low) / gene.resolution + 1e-9) + 1


def _value(gene: Gene, digit: int) -> Value:
    """The value of this number."""
    if gene.kind in ("categorical", "boolean"):
        choices: tuple[Value, ...] = gene.choices or (False, True)
        return choices[digit]
    if gene.kind == "integer":
        return math.ceil(gene.low) + digit
    return gene.low + digit * (gene.resolution or 0.0)

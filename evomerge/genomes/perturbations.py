"""Genomes of a search that perturbs one model: steps of it, and members of a population around it.

They are lineages of one parent (`evomerge.genomes.lineages`), so that a ledger writes each as one step and the number
of the candidate before it. A start has the values ``("start",)``; a step ``("step", seed, first, c_1, ..., c_n)``: the
coefficients of perturbations that are added to its parent; a member ``("member", seed, number, c)``: one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec, Value
from evomerge.genomes.lineages import LineageGenome

START, STEP, MEMBER = "start", "step", "member"
_MOST = 2**53


class Perturbations(NamedTuple):
    """What a genome adds to its parent.

    Attributes:
        seed: of the perturbations.
        first: the number of the first.
        coefficients: of this one and those that follow.
    """

    seed: int
    first: int
    coefficients: tuple[float, ...]


class PerturbationSpec(GenomeSpec):
    """The genomes of a search that perturbs one model; to strategies one gene of the kind ``perturbation``.

    Args:
        rank: of a perturbation.

    Raises:
        ConfigError: a rank below 1.
    """

    rank: int

    def __init__(self, rank: int = 1) -> None:
        if rank < 1:
            raise ConfigError(f"search_space.rank is {rank}", "1 or more")
        super().__init__((Gene("weights", "perturbation", choices=(START, STEP)),))
        object.__setattr__(self, "rank", rank)

    def __eq__(self, other: object) -> bool:
        return self.rank == other.rank if isinstance(other, PerturbationSpec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.rank)

    @property
    def initial(self) -> LineageGenome:
        """The start."""
        return LineageGenome((START,))

    def step(self, parent: LineageGenome, seed: int, first: int, coefficients: Sequence[float]) -> LineageGenome:
        """A model and perturbations of it, numbered from `first`."""
        return self._made((STEP, float(seed), float(first), *map(float, coefficients)), parent)

    def member(self, parent: LineageGenome, seed: int, number: int, coefficient: float) -> LineageGenome:
        """A model and one perturbation of it."""
        return self._made((MEMBER, float(seed), float(number), float(coefficient)), parent)

    def _made(self, values: Sequence[Value], parent: LineageGenome) -> LineageGenome:
        genome = LineageGenome(values, (parent,))
        self.check_step(genome)
        return genome

    def perturbations(self, genome: LineageGenome) -> Perturbations:
        """What a genome that is no start adds to its parent."""
        _, seed, first, *coefficients = genome.values
        return Perturbations(int(seed), int(first), tuple(float(value) for value in coefficients))

    def genome(self, values: Sequence[Value] | NDArray[np.float64]) -> Genome:
        """The start, from its name.

        Raises:
            ConfigError: anything else: a step has a parent.
        """
        if len(values) == 1 and values[0] == START:
            return self.initial
        raise ConfigError(f"the values {list(values)} alone are no perturbed model", "a step has a parent as well")

    def check(self, genome: Genome) -> None:
        """Raise `ConfigError` when a genome, or one that it descends from, is not of this spec."""
        self.check_step(genome)
        assert isinstance(genome, LineageGenome), "checked above"
        for each in genome.lineage:
            self.check_step(each)

    def check_step(self, genome: Genome) -> None:
        """Check one genome; those that it descends from were checked when they were made."""
        if not isinstance(genome, LineageGenome):
            raise ConfigError(f"a genome of {len(genome)} gene values was given", "a model and its perturbations")
        values = genome.values
        if values == (START,) and not genome.parents:
            return
        kind, numbers = (values[0], values[1:]) if values else ("", ())
        valid = (
            len(genome.parents) == 1
            and genome.parents[0].values[0] != MEMBER
            and kind in (STEP, MEMBER)
            and len(numbers) >= 3
            and (kind == STEP or len(numbers) == 3)
            and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
            and all(0 <= float(number) < _MOST and float(number).is_integer() for number in numbers[:2])
        )
        if not valid:
            raise ConfigError(
                f"a step of {len(genome.parents)} parents with the values {str(list(values))[:120]} was given",
                "one parent that is no member, and step or member, a seed, a number and coefficients",
            )

    def named(self, genome: Genome) -> dict[str, Value]:
        """The last step: what it is, with its seed, number and coefficients."""
        names = ["kind", "seed", "first", *(f"coefficient {i}" for i in range(1, len(genome) - 2))]
        return dict(zip(names, genome.values, strict=False))

    def value(self, genome: Genome, name: str) -> Value:
        """One value of the last step, by the name that `named` gives it."""
        return self.named(genome)[name]

    def sample(self, rng: np.random.Generator) -> LineageGenome:
        """A perturbation of the start, a hundredth of a standard normal one."""
        return self.member(self.initial, int(rng.integers(2**31)), 0, 0.01 / math.sqrt(self.rank))

"""Genomes of many real numbers: one array instead of a tuple, for searches over the raw weights of a network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec, Value

Array = NDArray[np.float32]


class ArrayGenome(Genome):
    """A genome whose values are the elements of one read-only float32 array.

    Equal to another `ArrayGenome` of the same bits. The tuple `values`, which costs a hundred times as much as a
    forward's share of the array, is only made for those who ask for it.

    Attributes:
        array: shape ``(genes,)``, float32, read-only. The array given is taken over when it is that already.
    """

    array: Array

    def __init__(self, array: NDArray[np.floating]) -> None:
        flags = array.flags
        if array.dtype != np.float32 or not flags.c_contiguous or flags.writeable:
            array = np.array(array, dtype=np.float32, order="C")
            array.flags.writeable = False
        object.__setattr__(self, "array", array)

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """The elements as Python floats."""
        return tuple(self.array.tolist())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the elements' bytes: what a ledger keeps of them."""
        return hashlib.sha256(self.array.tobytes()).hexdigest()

    @cached_property
    def _hash(self) -> int:
        return hash(self.array[:: max(len(self.array) // 32, 1)].tobytes())  # of a few: those of all take 20 us

    def __len__(self) -> int:
        return len(self.array)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, ArrayGenome):
            return NotImplemented
        return self._hash == other._hash and self.array.tobytes() == other.array.tobytes()

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"ArrayGenome({len(self)} values, {self.digest[:8]})"

    def __reduce__(self) -> tuple[type[ArrayGenome], tuple[Array]]:
        return ArrayGenome, (self.array,)  # without what is cached: hashes of bytes differ between processes


class ArraySpec(GenomeSpec):
    """A box of real numbers without a grid, the same bounds for all, whose genomes are `ArrayGenome`.

    Args:
        names: of the genes.
        bound: every value lies in ``[-bound, bound]``.
        start: where a search without prior knowledge starts; zeros for ``None``.
        seeds: genomes that a population starts from, such as networks trained already.

    Raises:
        ConfigError: names twice, a bound that is not positive, or arrays of another length or out of bounds.
    """

    seeds: tuple[ArrayGenome, ...]
    bound: float

    def __init__(
        self, names: Sequence[str], bound: float, start: Array | None = None, seeds: Sequence[Array] = ()
    ) -> None:
        if not bound > 0:
            raise ConfigError(f"the bound of an array of genes is {bound}", "above 0")
        super().__init__(tuple(Gene(name, low=-bound, high=bound) for name in names))
        object.__setattr__(self, "bound", float(bound))
        first = self.genome(np.zeros(len(self), np.float32) if start is None else start)
        object.__setattr__(self, "_start", first)
        object.__setattr__(self, "seeds", tuple(self.genome(seed) for seed in seeds))

    _start: ArrayGenome

    def genome(self, values: Sequence[Value] | NDArray[np.float64] | Array) -> ArrayGenome:
        """A genome of these values, clipped to the bounds and rounded to float32.

        Raises:
            ConfigError: too many or too few values, or NaN.
        """
        if len(values) != len(self.genes):
            raise ConfigError(
                f"a genome of {len(values)} values was given", f"the search space has {len(self.genes)} genes"
            )
        return self.taken(np.array(values, dtype=np.float32))

    def taken(self, array: Array, inside: bool = False) -> ArrayGenome:
        """A genome that holds these values without a copy: the right number of float32, which nobody else keeps.

        Args:
            array: the values.
            inside: whether they are known to be within bounds.
        """
        if not inside and not (array.max() <= self.bound and array.min() >= -self.bound):
            if np.isnan(array).any():
                raise ConfigError("a genome with NaN was given", f"numbers in [{-self.bound}, {self.bound}]")
            np.clip(array, -self.bound, self.bound, out=array)
        array.flags.writeable = False
        return ArrayGenome(array)

    def check(self, genome: Genome) -> None:
        """Raise `ConfigError` when a value is out of bounds or not a number, or one is missing."""
        if len(genome) != len(self.genes):
            raise ConfigError(
                f"a genome of {len(genome)} values was given", f"the search space has {len(self.genes)} genes"
            )
        values = numbers(genome)
        wrong = np.flatnonzero(~(np.abs(values) <= self.bound))
        if len(wrong):
            self.genes[wrong[0]].check(float(values[wrong[0]]))

    @property
    def initial(self) -> ArrayGenome:
        """The genome that a search starts at."""
        return self._start

    def sample(self, rng: np.random.Generator) -> ArrayGenome:
        """A genome drawn uniformly within bounds."""
        return self.genome(rng.uniform(-self.bound, self.bound, len(self)))


def numbers(genome: Genome) -> Array | NDArray[np.float64]:
    """The values of a genome of numbers as an array: read-only float32 of an `ArrayGenome`, else float64."""
    if isinstance(genome, ArrayGenome):
        return genome.array
    return np.array(genome.values, dtype=np.float64)

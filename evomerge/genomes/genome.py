"""Genomes: the frozen vectors that strategies vary, and the specs that describe them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError

Kind = Literal["continuous", "integer", "categorical", "boolean", "lineage", "perturbation"]
Value = float | int | str | bool


@dataclass(frozen=True)
class Gene:
    """One coordinate of a genome.

    Attributes:
        name: unique within the spec, e.g. ``"layers.0-3.attn/math/weight"``.
        kind: which values it takes; ``lineage`` stands for whole genomes that are merges of genomes
            (`evomerge.genomes.lineages`), ``perturbation`` for steps of one model (`evomerge.genomes.perturbations`).
        low, high: inclusive bounds (continuous and integer genes).
        initial: where a search without prior knowledge starts; the middle by default.
        resolution: continuous values are snapped to ``low + k * resolution``, so that nearby
            candidates share slices; ``None`` leaves them as proposed.
        choices: the values of a categorical gene.
        spread: how far from the start first candidates are, for strategies that begin around it; ``None`` leaves it
            to them. Of a number, the standard deviation as a share of its range; of a truth value or a choice, the
            probability of another one than the start's.

    >>> Gene("layers.0/math/weight", high=2.0, resolution=0.25).snap(0.9)
    1.0
    >>> Gene("layers.0/method", "categorical", choices=("ties", "slerp")).start
    'ties'
    """

    name: str
    kind: Kind = "continuous"
    low: float = 0.0
    high: float = 1.0
    initial: Value | None = None
    resolution: float | None = None
    choices: tuple[str, ...] = ()
    spread: float | None = None

    def __post_init__(self) -> None:
        if self.kind in ("continuous", "integer"):
            if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low > self.high:
                raise ConfigError(
                    f"gene {self.name!r} has bounds [{self.low}, {self.high}]",
                    "low and high must be finite with low <= high",
                )
            if self.kind == "integer" and math.ceil(self.low) > math.floor(self.high):
                raise ConfigError(
                    f"integer gene {self.name!r} has bounds [{self.low}, {self.high}]", "an integer must lie between"
                )
        if self.kind == "categorical" and (not self.choices or len(set(self.choices)) < len(self.choices)):
            raise ConfigError(f"categorical gene {self.name!r} has choices {self.choices}", "one or more, each once")
        if self.resolution is not None and not self._grid_fits(self.resolution):
            raise ConfigError(
                f"gene {self.name!r} has resolution {self.resolution}",
                f"a grid within [{self.low}, {self.high}] needs a step between 1e-9 of the range and the range itself",
                "leave it out for a continuous gene without a grid",
            )
        if self.spread is not None and not 0 < self.spread <= 1:
            raise ConfigError(f"gene {self.name!r} has spread {self.spread}", "above 0 and at most 1, or None")
        if self.initial is not None:
            self.check(self.initial)

    def _grid_fits(self, step: float) -> bool:
        span = self.high - self.low
        return step > 0 and math.isfinite(step) and (span == 0 or span * 1e-9 <= step <= span * (1 + 1e-9))

    def check(self, value: Value) -> None:
        """Raise `ConfigError` when `value` is not one of this gene's values."""
        if self.kind == "categorical":
            valid = value in self.choices
            allowed = f"one of {', '.join(self.choices)}"
        elif self.kind == "boolean":
            valid = isinstance(value, (bool, np.bool_))
            allowed = "true or false"
        else:
            valid = (
                isinstance(value, (int, float))
                and not isinstance(value, bool)
                and self.low <= value <= self.high
                and (self.kind == "continuous" or value == value // 1)
            )
            allowed = f"a{'n integer' if self.kind == 'integer' else ' number'} in [{self.low}, {self.high}]"
        if not valid:
            raise ConfigError(f"gene {self.name!r} was given {value!r}", f"allowed: {allowed}")

    def snap(self, value: Value) -> Value:
        """The nearest value of this gene: clipped to the bounds, on the grid, of the right type.

        Raises:
            ConfigError: nothing is near: NaN, or a value that is not one of the choices.
        """
        if self.kind == "categorical" or self.kind == "boolean":
            self.check(value)
            return bool(value) if self.kind == "boolean" else str(value)
        if isinstance(value, (str, bool)) or math.isnan(value):
            shown = value if isinstance(value, (str, bool)) else float(value)
            raise ConfigError(f"gene {self.name!r} was given {shown!r}", f"a number in [{self.low}, {self.high}]")
        low, high = float(self.low), float(self.high)
        clipped = min(max(float(value), low), high)
        if self.kind == "integer":
            return min(max(round(clipped), math.ceil(low)), math.floor(high))
        if self.resolution is not None and low < high:
            # The last grid point is where the bounds say, not where their difference was rounded to.
            slack = 1e-9 + 1e-15 * max(abs(low), abs(high)) / self.resolution
            last = math.floor((high - low) / self.resolution + slack)
            step = min(round((clipped - low) / self.resolution), last)
            # Rounding to 12 digits makes equal grid points equal floats, hence equal content keys.
            clipped = min(max(round(low + step * self.resolution, 12), low), high)
        return clipped + 0.0  # -0.0 and 0.0 would be equal genomes with different hashes

    @property
    def start(self) -> Value:
        """`initial`, or the middle of the range, the first choice, or ``False``."""
        if self.initial is not None:
            return self.snap(self.initial)
        if self.kind == "categorical":
            return self.choices[0]
        if self.kind == "boolean":
            return False
        return self.snap((self.low + self.high) / 2)


@dataclass(frozen=True)
class Genome:
    """A frozen vector of gene values, in the order of its `GenomeSpec`.

    >>> Genome((0.5, "ties")) == Genome((0.5, "ties")), len(Genome((0.5, "ties")))
    (True, 2)
    """

    values: tuple[Value, ...]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class GenomeSpec:
    """The genes of a search space, in order.

    Raises:
        ConfigError: two genes share a name, or there are none.

    >>> spec = GenomeSpec((Gene("math/weight"), Gene("method", "categorical", choices=("ties", "slerp"))))
    >>> spec.initial
    Genome(values=(0.5, 'ties'))
    >>> spec.named(spec.genome([1.7, "slerp"]))
    {'math/weight': 1.0, 'method': 'slerp'}
    """

    genes: tuple[Gene, ...]
    _index: Mapping[str, int] = field(init=False, repr=False, compare=False)
    _bounds: tuple[NDArray[np.float64], NDArray[np.float64]] = field(init=False, repr=False, compare=False)
    _box: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = {gene.name: i for i, gene in enumerate(self.genes)}
        if len(index) != len(self.genes):
            twice = sorted(name for name, count in Counter(g.name for g in self.genes).items() if count > 1)
            raise ConfigError(f"genes named twice: {', '.join(twice)}", "gene names must be unique")
        if not self.genes:
            raise ConfigError(
                "the search space has no genes",
                "a search needs at least one",
                "free a weight or density by giving it low < high",
            )
        object.__setattr__(self, "_index", index)
        low, high = np.array([_range(gene) for gene in self.genes]).T
        object.__setattr__(self, "_bounds", (low, high))
        object.__setattr__(self, "_box", all(g.kind == "continuous" and g.resolution is None for g in self.genes))

    def __len__(self) -> int:
        return len(self.genes)

    def __iter__(self) -> Iterator[Gene]:
        return iter(self.genes)

    def genome(self, values: Sequence[Value] | NDArray[np.float64]) -> Genome:
        """A genome of these values, snapped to each gene's bounds, grid and type.

        Raises:
            ConfigError: too many or too few values, NaN, or values that a gene cannot take.
        """
        if len(values) != len(self.genes):
            raise ConfigError(
                f"a genome of {len(values)} values was given", f"the search space has {len(self.genes)} genes"
            )
        if self._box and isinstance(values, np.ndarray) and not np.isnan(values).any():
            # The same as snapping one by one, for the many genes of raw weights.
            return Genome(tuple((np.clip(values, *self._bounds) + 0.0).tolist()))
        return Genome(tuple(gene.snap(value) for gene, value in zip(self.genes, values, strict=True)))

    def check(self, genome: Genome) -> None:
        """Raise `ConfigError` when a value is out of bounds or of the wrong type, or one is missing."""
        if len(genome) != len(self.genes):
            raise ConfigError(
                f"a genome of {len(genome)} values was given", f"the search space has {len(self.genes)} genes"
            )
        for gene, value in zip(self.genes, genome.values, strict=True):
            # Most genes of long genomes are these, and the check's message takes longer than the comparison.
            if type(value) is float and gene.kind == "continuous" and gene.low <= value <= gene.high:
                continue
            if type(value) is bool and gene.kind == "boolean":
                continue
            gene.check(value)

    def named(self, genome: Genome) -> dict[str, Value]:
        """The genome's values by gene name."""
        return {gene.name: value for gene, value in zip(self.genes, genome.values, strict=True)}

    def value(self, genome: Genome, name: str) -> Value:
        """The value of one gene."""
        return genome.values[self._index[name]]

    @property
    def initial(self) -> Genome:
        """The genome of every gene's start value."""
        return Genome(tuple(gene.start for gene in self.genes))

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper bounds, each of shape ``(len(self),)``; boolean genes span 0 to 1, choices their numbers."""
        low, high = self._bounds
        return low.copy(), high.copy()

    def sample(self, rng: np.random.Generator) -> Genome:
        """A genome drawn uniformly within bounds."""
        if self._box:  # the same draws as one by one
            return self.genome(rng.uniform(*self._bounds))
        values: list[Value] = []
        for gene in self.genes:
            if gene.kind == "categorical":
                values.append(gene.choices[int(rng.integers(len(gene.choices)))])
            elif gene.kind == "boolean":
                values.append(bool(rng.integers(2)))
            elif gene.kind == "integer":
                values.append(int(rng.integers(math.ceil(gene.low), math.floor(gene.high) + 1)))
            else:
                values.append(float(rng.uniform(gene.low, gene.high)))
        return self.genome(values)


def _range(gene: Gene) -> tuple[float, float]:
    """Bounds as numbers: of the value, or of the number of the choice."""
    if gene.kind in ("continuous", "integer"):
        return float(gene.low), float(gene.high)
    return 0.0, 1.0 if gene.kind == "boolean" else float(len(gene.choices) - 1)

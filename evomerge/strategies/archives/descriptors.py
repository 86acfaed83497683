"""Descriptors: the numbers by which quality diversity tells one kind of good candidate from another."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Evaluation
from evomerge.errors import ConfigError, FitnessError, nearest
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective

Array = NDArray[np.float64]

GENES = "genes:"
"""What a descriptor of the genome begins with: ``genes:*/math/weight`` is the mean of the genes that match."""

MOST = 2
"""As many descriptors are chosen where none is given."""


class Descriptors:
    """Reads a candidate's descriptors, each clipped to its range.

    A descriptor is the name of an objective, a ``task/metric`` that the fitness reports, or ``genes:GLOB``: the mean
    of the genes whose names match, as numbers (false is 0). Without a choice they are the objectives but the first; of
    a single objective, the means of the genes by what follows the first ``/`` in their names (a source's weights, a
    method's densities), at most `MOST` of them.

    Args:
        spec: the genes.
        objectives: all of them.
        names: the descriptors, or ``None``.
        ranges: of each the lowest and highest value told apart; ``None``, or ``None`` for one of them, is 0 to 1, and
            for genes the range that their mean can have.

    Raises:
        ConfigError: a glob that matches nothing or categorical genes, a name twice, a range that is none.
    """

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        names: Sequence[str] | None,
        ranges: Sequence[Sequence[float] | None] | None,
    ) -> None:
        self.names = list(names) if names is not None else _default(spec, objectives)
        if not self.names or len(set(self.names)) < len(self.names):
            raise ConfigError(f"strategy.descriptors is {self.names}", "one or more, each once")
        self._genes = [_matching(spec, name) if name.startswith(GENES) else None for name in self.names]
        given = list(ranges) if ranges is not None else [None] * len(self.names)
        if len(given) != len(self.names):
            raise ConfigError(
                f"strategy.ranges has {len(given)} entries", f"one for each of {', '.join(self.names)}, or null"
            )
        low, high = spec.bounds
        self.ranges: list[tuple[float, float]] = []
        for name, entry, genes in zip(self.names, given, self._genes, strict=True):
            if entry is None:
                entry = (0.0, 1.0) if genes is None else (float(low[genes].mean()), float(high[genes].mean()))
            if len(entry) != 2 or not all(map(math.isfinite, entry)) or not entry[0] < entry[1]:
                raise ConfigError(f"the range of descriptor {name!r} is {list(entry)}", "two numbers, the lower first")
            self.ranges.append((float(entry[0]), float(entry[1])))
        self._low, self._high = np.array(self.ranges).T

    def __len__(self) -> int:
        return len(self.names)

    @property
    def of_genes_alone(self) -> bool:
        """Whether a genome has them before it is scored."""
        return None not in self._genes

    def of(self, genome: Genome, evaluation: Evaluation) -> Array | None:
        """The descriptors, shape ``(len(self),)``; ``None`` where one is not a number.

        What lies beyond a range, infinity included, counts as its end.

        Raises:
            FitnessError: the evaluation is ok and lacks one of them.
        """
        if not evaluation.ok:
            return None
        values = np.array(
            [
                self._reported(name, evaluation) if genes is None else float(np.mean([genome.values[i] for i in genes]))
                for name, genes in zip(self.names, self._genes, strict=True)
            ]
        )
        return None if np.isnan(values).any() else np.clip(values, self._low, self._high)

    @staticmethod
    def _reported(name: str, evaluation: Evaluation) -> float:
        for reported in (evaluation.objectives, evaluation.metrics):
            if name in reported:
                return float(reported[name])
        known = [*evaluation.objectives, *evaluation.metrics]
        raise FitnessError(
            f"the evaluation of candidate {evaluation.candidate} has no descriptor {name!r}",
            nearest(name, known),
            "set strategy.descriptors",
        )


def _default(spec: GenomeSpec, objectives: Sequence[Objective]) -> list[str]:
    if len(objectives) > 1:
        return [objective.name for objective in objectives[1:]]
    low, high = spec.bounds
    free = [gene.name for gene, lo, hi in zip(spec, low, high, strict=True) if gene.kind != "categorical" and lo < hi]
    endings = dict.fromkeys(name.partition("/")[2] for name in free if "/" in name)
    return [f"{GENES}*/{ending}" for ending in list(endings)[:MOST]] or [f"{GENES}*"]


def _matching(spec: GenomeSpec, name: str) -> list[int]:
    glob = name.removeprefix(GENES)
    found = [i for i, gene in enumerate(spec) if fnmatch.fnmatchcase(gene.name, glob)]
    wrong = [spec.genes[i].name for i in found if spec.genes[i].kind == "categorical"]
    if not found:
        raise ConfigError(f"descriptor {name!r} matches no gene", nearest(glob, [gene.name for gene in spec]))
    if wrong:
        raise ConfigError(f"descriptor {name!r} matches {wrong[0]!r}, which is categorical", "genes that are numbers")
    return found

"""Cyclic quality: every objective in turn is what elites are best at, and the others say by what they differ.

Kuroki et al., "Agent Skill Acquisition for Large Language Models via CycleQD" (arXiv 2410.14735).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.archives.descriptors import Descriptors
from evomerge.strategies.bases.capabilities import objective_named
from evomerge.strategies.bases.generations import gain_of

Array = NDArray[np.float64]
Quality = Literal["fixed", "cyclic"]
LEAST, MOST = 0.5, 0.8
"""What the worst and the best count in each respect when elites are drawn by quality."""


@dataclass(frozen=True)
class Niche:
    """What one archive is of: its quality, and the descriptors of its cells."""

    quality: Objective
    descriptors: Descriptors
    upward: Array
    """Of each descriptor 1 where larger is better, -1 where smaller is, 0 where neither; shape ``(descriptors,)``."""

    def placed(self, genome: Genome, told: Evaluation) -> tuple[float, Array | None]:
        """The gain of a candidate, NaN for none, and its place; ``None`` where it has none.

        Raises:
            FitnessError: the evaluation is ok and lacks something.
        """
        gain = gain_of(told, self.quality)
        return gain, None if math.isnan(gain) else self.descriptors.of(genome, told)

    def odds(self, gains: Array, places: Array) -> Array:
        """Chances of elites to be parents: the product of how good they are in each respect, from 0.5 to 0.8.

        The public code reaches 1.3 where it means 0.8.

        Args:
            gains: shape ``(n,)``, larger is better.
            places: their descriptors, shape ``(n, descriptors)``.

        Returns:
            Shape ``(n,)``, with the sum 1.
        """
        product = _from_least_to_most(gains)
        for values, up in zip(places.T, self.upward, strict=True):
            if up:
                product = product * _from_least_to_most(up * values)
        return np.asarray(product / product.sum(), dtype=np.float64)


def niches(
    spec: GenomeSpec,
    objectives: Sequence[Objective],
    quality: Quality,
    objective: str | None,
    descriptors: Sequence[str] | None,
    ranges: Sequence[Sequence[float] | None] | None,
) -> list[Niche]:
    """The archives that there are: one, or one for each objective.

    Args:
        objective, descriptors: of the one archive; both ``None`` for cyclic quality.
        ranges: of descriptors; of cyclic quality one for each objective.

    Raises:
        ConfigError: a quality that there is not, or settings that do not go together.
    """
    if quality not in ("fixed", "cyclic"):
        raise ConfigError(f"strategy.quality is {quality!r}", "fixed or cyclic")
    if quality == "fixed":
        best = objective_named(objectives, objective, "strategy.objective")
        return [_niche(spec, objectives, best, Descriptors(spec, objectives, descriptors, ranges))]
    for key, value in (("objective", objective), ("descriptors", descriptors)):
        if value is not None:
            raise ConfigError(
                f"strategy.{key} is {value} and strategy.quality is cyclic",
                "all objectives take turns, and the others are the descriptors",
                f"leave strategy.{key} out",
            )
    if len(objectives) < 2:
        given = objectives[0].name if objectives else "none"
        do = "give tasks an objective each (fitness.tasks: objective), without search.scalarise"
        raise ConfigError(f"strategy.quality is cyclic and there is one objective, {given}", "two or more", do)
    if ranges is not None and len(ranges) != len(objectives):
        names = ", ".join(each.name for each in objectives)
        raise ConfigError(f"strategy.ranges has {len(ranges)} entries", f"one for each of {names}, or null")
    made = []
    for turn, best in enumerate(objectives):
        others = [each.name for each in objectives if each is not best]
        bounds = None if ranges is None else [*ranges[:turn], *ranges[turn + 1 :]]
        made.append(_niche(spec, objectives, best, Descriptors(spec, objectives, others, bounds)))
    return made


def _niche(spec: GenomeSpec, objectives: Sequence[Objective], best: Objective, descriptors: Descriptors) -> Niche:
    by_name = {each.name: each for each in objectives}
    upward = [by_name[name].gain(1.0) if name in by_name else 0.0 for name in descriptors.names]
    return Niche(best, descriptors, np.array(upward))


def _from_least_to_most(values: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        share = (values - values.min()) / (values.max() - values.min())
    return np.where(np.isfinite(share), LEAST + (MOST - LEAST) * share, 1.0)

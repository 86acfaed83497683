"""A landscape: genomes to what a run would have scored them, by a model that was fitted to its candidates."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.landscape.features import Features
from evomerge.landscape.forest import Forest
from evomerge.landscape.items import ItemModel
from evomerge.landscape.surface import Surface
from evomerge.objectives import MetricShare, Objective

Array = NDArray[np.float64]
Part = Mapping[str, Sequence[int]]
_LARGEST_LOG = 700.0  # of which float64 has an exponential


@dataclass(frozen=True)
class Fit:
    """How well a landscape tells one target of candidates that it was not fitted to.

    Attributes:
        r2: the share of the variance that is explained; below 0 is worse than the mean.
        rank: Spearman's rank correlation of told and true; 0 of a target that is the same for all.
        error: root of the mean squared error.
        items: of that, what the drawing of so many items gives by itself; 0 of targets that are no means of items.
    """

    r2: float
    rank: float
    error: float
    items: float


@dataclass(frozen=True)
class Landscape:
    """What is predicted of a genome.

    Attributes:
        genes: the search space of the run.
        objectives: of the run, in order.
        shares: what each metric counts in the objectives.
        targets: names of what is predicted: metrics, ``task/metric``, those whose logarithm counts as their
            logarithm; or objectives, where these are not made of metrics.
        surface, forest: predict the targets from the genes' features, as a sum.
        items: by target the items that it is the mean of.
        fit: by target, cross-validated.
        source: what it was fitted to: ``evaluations``, ``seed`` and the like.
    """

    genes: tuple[Gene, ...]
    objectives: tuple[Objective, ...]
    shares: tuple[MetricShare, ...]
    targets: tuple[str, ...]
    surface: Surface
    forest: Forest
    items: Mapping[str, ItemModel]
    fit: Mapping[str, Fit]
    source: Mapping[str, str | int | float] = field(default_factory=dict)
    fingerprint: str = ""

    @cached_property
    def spec(self) -> GenomeSpec:
        """The genes."""
        return GenomeSpec(self.genes)

    @cached_property
    def features(self) -> Features:
        """What surface and forest see of genomes."""
        return Features(self.genes)

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many items each task has."""
        found: dict[str, int] = {}
        for target, own in self.items.items():
            found[task_of(target)] = len(own.offsets)
        return found

    def predict(self, genomes: Sequence[Genome]) -> Array:
        """The targets of genomes, shape ``(genomes, targets)``, without noise.

        Raises:
            ConfigError: a genome of other genes.
        """
        rows = self.features.rows(genomes)
        found = self.surface.predict(rows) + self.forest.predict(rows)
        shares = [i for i, target in enumerate(self.targets) if self._is_share(target)]
        found[:, shares] = np.clip(found[:, shares], 0.0, 1.0)
        return found

    def _is_share(self, target: str) -> bool:
        """Whether it is the share of items that are right."""
        return target in self.items and self.items[target].deviations is None

    def score(
        self, genome: Genome, seed: int | None = None, part: Part | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """The targets of one genome as a run would score it, and the values of its items.

        Args:
            genome: of these genes.
            seed: of what is drawn, which is the same for the same genome; ``None`` for what is expected.
            part: by task the items to score; all for ``None``. Values of others are NaN.

        Raises:
            ConfigError: a genome of other genes, or items that there are not.
        """
        predicted = self.predict([genome])[0]
        places = {} if part is None else {task: self._places(task, part[task]) for task in part}
        draws = {} if seed is None else self._draws(genome, seed)
        found: dict[str, Array] = {}
        for number, target in enumerate(self.targets):
            own, task = self.items.get(target), task_of(target)
            if own is None:
                continue
            score = float(predicted[number])
            values = own.expected(score) if seed is None else own.drawn(score, *draws[task])
            if part is not None:
                kept = np.full(len(values), np.nan)
                chosen = places.get(task, np.empty(0, int))
                kept[chosen] = values[chosen]
                values = kept
                if not len(chosen):
                    found[target] = values
                    predicted[number] = np.nan
                    continue
            found[target] = values
            if part is not None or seed is not None:
                predicted[number] = np.nanmean(values)
        return predicted, found

    def objectives_of(self, values: Array) -> dict[str, float]:
        """The objectives of targets; those that are NaN are left out of them."""
        return objectives_of(dict(zip(self.targets, map(float, values), strict=True)), self.objectives, self.shares)

    def metrics_of(self, values: Array) -> dict[str, float]:
        """The metrics of targets that are not NaN, as the run reported them."""
        logs = {share.metric for share in self.shares if share.transform}
        pairs = zip(self.targets, map(float, values), strict=True)
        return {n: math.exp(min(v, _LARGEST_LOG)) if n in logs else v for n, v in pairs if not math.isnan(v)}

    def _places(self, task: str, places: Sequence[int]) -> NDArray[np.int64]:
        chosen = np.asarray(places, dtype=np.int64)
        count = self.counts.get(task)
        if count is None or (chosen.size and not (chosen.min() >= 0 and chosen.max() < count)):
            has = ", ".join(f"{name} {number}" for name, number in self.counts.items())
            raise ConfigError(f"items {list(places)[:5]} of task {task!r} are asked for", f"the landscape has: {has}")
        return chosen

    def _draws(self, genome: Genome, seed: int) -> dict[str, tuple[Array, Array]]:
        """Random numbers for every item: a genome's own, whatever is evaluated before or beside it."""
        key = hashlib.sha256(repr((seed, genome.values)).encode()).digest()
        rng = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
        return {task: (rng.random(count), rng.standard_normal(count)) for task, count in self.counts.items()}


def task_of(target: str) -> str:
    """The task of ``task/metric``."""
    return target.rpartition("/")[0]


def objectives_of(
    counted: Mapping[str, float], objectives: Sequence[Objective], shares: Sequence[MetricShare]
) -> dict[str, float]:
    """Objectives from what counts of metrics: ``sum(w c)`` over an objective's shares.

    A metric whose better values are not the objective's counts negatively. Where some have no value (NaN), the sum over
    the others is scaled by the weight of all over theirs. An objective without shares is a target itself.

    Args:
        counted: by metric what counts of it (`MetricShare.counted`), or by objective its value.
        objectives: by name.
        shares: the weights as they are, not only their ratios.

    Returns:
        By objective; NaN where nothing has a value.
    """
    found: dict[str, float] = {}
    for objective in objectives:
        own = [share for share in shares if share.objective in ("", objective.name)]
        if not own:
            found[objective.name] = counted.get(objective.name, math.nan)
            continue
        known = [share for share in own if not math.isnan(counted.get(share.metric, math.nan))]
        weight, total = sum(share.weight for share in known), sum(share.weight for share in own)
        signs = [1 if share.direction == objective.direction else -1 for share in known]
        value = sum(sign * s.weight * counted[s.metric] for sign, s in zip(signs, known, strict=True))
        found[objective.name] = value * total / weight if weight else math.nan
    return found

"""A landscape as a fitness: genomes are scored by a model of what a run found, in fractions of a millisecond."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import replace
from typing import Any

from evomerge.candidate import Part
from evomerge.errors import ConfigError, FitnessError
from evomerge.genomes.genome import Genome
from evomerge.landscape.file import read_landscape
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Estimator, Scores
from fitness.estimators.settings import parse_estimator


class SurrogateFitness:
    """What a landscape says of a genome; scores genomes, not models, for ``evaluator=direct``.

    With noise, every item is right or wrong at random with the probability that the predicted score and its difficulty
    give (`evomerge.landscape.items.ItemModel`), and metrics are the means: a search is misled by its items as much as
    it is by as many real ones. The draws belong to the genome and the seed, so that the same genome has the same
    score in every search, whatever was evaluated before. Genomes that are near to each other have draws of their own,
    while real models that are nearly alike answer nearly alike: the landscape is rougher nearby than what it is of.

    Per-item values: of metrics that are means of items. Metrics: all that the landscape predicts.

    Args:
        file: of the landscape, which ``evomerge export --format landscape`` wrote.
        noise: whether items are drawn; without it every metric is what is expected.
        seed: of the draws.
        estimator: of candidates scored on some items, what all would give, as of `fitness=lm_eval`.

    Raises:
        ConfigError: there is no such file, or it is no landscape; a negative seed.
    """

    def __init__(
        self, *, file: str, noise: bool = True, seed: int = 0, estimator: str | dict[str, Any] | None = None
    ) -> None:
        if seed < 0:
            raise ConfigError(f"fitness.seed is {seed}", "0 or more")
        self._estimator = parse_estimator(estimator)
        self._landscape = read_landscape(file)
        self._seed = seed if noise else None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those of the run that the landscape is of."""
        return self._landscape.objectives

    def shares(self) -> tuple[MetricShare, ...]:
        """What each metric counts in the objectives, as in that run."""
        return self._landscape.shares

    def items(self) -> dict[str, int]:
        """How many items each task has."""
        return dict(self._landscape.counts)

    def build_estimator(self) -> Estimator:
        """Build what tells of some items what all would give: of perplexities items are logarithms already."""
        shares = [replace(share, transform="") for share in self._landscape.shares]
        return self._estimator.build(shares, self.objectives, self.items())

    def check(self) -> None:
        """Nothing can be wrong that the constructor did not see."""

    def cautions(self) -> list[str]:
        """The metrics of which the landscape tells hardly more than their mean."""
        poor = [f"{name} (R2 {fit.r2:.2f})" for name, fit in self._landscape.fit.items() if fit.r2 < 0.2]
        return [f"the landscape hardly knows {', '.join(poor)}: what does well on it may not elsewhere"] if poor else []

    def fingerprint(self) -> str:
        """Hash of the landscape and of what is drawn."""
        text = f"{self._landscape.fingerprint} {self._seed}"
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def score_genome(self, genome: Genome, part: Part | None = None) -> Scores:
        """Score a genome of the landscape's genes on some items, or on all.

        Raises:
            ConfigError: a genome of other genes, or items that there are not.
            FitnessError: a part without any item of an objective.
        """
        started = time.perf_counter()
        values, items = self._landscape.score(genome, self._seed, part)
        metrics, objectives = self._landscape.metrics_of(values), self._landscape.objectives_of(values)
        missing = [name for name, value in objectives.items() if math.isnan(value)]
        if missing:
            raise FitnessError(f"the part has no item of {', '.join(missing)}", "items of every objective")
        return Scores(objectives, metrics, items, {"model": 0.0, "other": time.perf_counter() - started})

"""Fitting a landscape to evaluated genomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome
from evomerge.landscape.features import Features, Rows
from evomerge.landscape.forest import Forest
from evomerge.landscape.items import ItemModel
from evomerge.landscape.landscape import Fit, Landscape
from evomerge.landscape.surface import Surface
from evomerge.objectives import MetricShare, Objective

Array = NDArray[np.float64]

LEAST = 30
"""Evaluations, at least: six for each of five folds."""
FOLDS = 5
_TREES, _LEAF = 100, 2


@dataclass(frozen=True)
class Evaluated:
    """What a run found.

    Attributes:
        genes: of its search space.
        genomes: of its candidates that were scored.
        objectives: of the run.
        shares: of which metrics they are the sum; empty where they are targets themselves.
        targets: by name what counts of each candidate's metric, or its objective: shape ``(genomes,)``, finite.
        items: by target, where it is the mean of its items, their values, shape ``(genomes, items)``.
    """

    genes: Sequence[Gene]
    genomes: Sequence[Genome]
    objectives: Sequence[Objective]
    shares: Sequence[MetricShare]
    targets: Mapping[str, Array]
    items: Mapping[str, Array] = field(default_factory=dict)


def fit_landscape(
    found: Evaluated, *, seed: int = 0, source: Mapping[str, str | int | float] | None = None
) -> Landscape:
    """Fit a quadratic surface, and a forest of extremely randomised trees to what that leaves.

    The surface (`Surface`) is smooth, as scores are within the small steps on which strategies depend; the forest
    (Geurts et al., Machine Learning 63, 2006), one for all targets, has the rest: choices, edges, what is no parabola.
    It is fitted to what surfaces leave that have not seen the same candidates (five folds), since those that have leave
    less. Forests alone were best in "Efficient Benchmarking of Hyperparameter Optimizers via Surrogates" (Eggensperger
    et al., AAAI 2015), for spaces with more choices than numbers. A leaf holds two candidates at least. What is left of
    each target is scaled to a standard deviation of 1, so that all have the same say in where trees split.

    How well it does is told by cross-validation with five folds, drawn with the seed.

    Args:
        found: what was evaluated.
        seed: of the trees and folds.
        source: what else is noted of where it comes from.

    Raises:
        ConfigError: too few evaluations, or genes that stand for whole genomes.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    if len(found.genomes) < LEAST:
        raise ConfigError(
            f"there are {len(found.genomes)} scored candidates with genomes",
            f"at least {LEAST}: fewer say nothing of what lies between them",
            "let the search go on with `evomerge resume RUN search.evaluations=...`",
        )
    rows = Features(found.genes).rows(found.genomes)
    names = tuple(found.targets)
    values = np.stack([found.targets[name] for name in names], axis=1)

    def fitted(chosen: NDArray[np.bool_]) -> tuple[Surface, Forest]:
        own, wanted = rows[chosen], values[chosen]
        rest = wanted - _left_out(own, wanted, seed)
        mean, scale = rest.mean(axis=0), rest.std(axis=0)
        scaled = (rest - mean) / np.where(scale > 0, scale, 1.0)
        model = ExtraTreesRegressor(_TREES, min_samples_leaf=_LEAF, random_state=seed, n_jobs=1)
        model.fit(own, scaled if len(names) > 1 else scaled[:, 0])
        return Surface.fitted(own, wanted), Forest.of(model.estimators_, mean, scale)

    folds = np.random.default_rng(seed).permutation(np.arange(len(rows)) % FOLDS)
    told = np.empty_like(values)
    for fold in range(FOLDS):
        surface, forest = fitted(folds != fold)
        told[folds == fold] = surface.predict(rows[folds == fold]) + forest.predict(rows[folds == fold])
    items = {name: ItemModel.of(own, told[:, names.index(name)]) for name, own in found.items.items() if name in names}
    fit = {name: _fit(values[:, i], told[:, i], items.get(name)) for i, name in enumerate(names)}
    noted = {"evaluations": len(rows), "seed": seed, **(source or {})}
    surface, forest = fitted(np.ones(len(rows), bool))
    return Landscape(
        tuple(found.genes),
        tuple(found.objectives),
        tuple(found.shares),
        names,
        surface,
        forest,
        items,
        fit,
        noted,
    )


def _left_out(rows: Rows, values: Array, seed: int) -> Array:
    """What surfaces tell of candidates that they were not fitted to."""
    folds = np.random.default_rng([seed, 1]).permutation(np.arange(len(rows)) % FOLDS)
    told = np.empty_like(values)
    for fold in range(FOLDS):
        told[folds == fold] = Surface.fitted(rows[folds != fold], values[folds != fold]).predict(rows[folds == fold])
    return told


def _fit(true: Array, told: Array, items: ItemModel | None) -> Fit:
    from scipy.stats import spearmanr

    squares = float(((true - told) ** 2).mean())
    variance = float(true.var())
    same = variance == 0 or np.ptp(told) == 0
    drawn = 0.0 if items is None else float(np.sqrt(np.mean([items.error(float(value)) ** 2 for value in told])))
    return Fit(
        r2=1 - squares / variance if variance else 0.0,
        rank=0.0 if same else float(spearmanr(true, told).statistic),
        error=squares**0.5,
        items=drawn,
    )

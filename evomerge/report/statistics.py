"""Paired tests: is one model better than another on the same items?

Every comparison is of `a` against `b` and is signed so that positive means that `a` is better, also for
metrics where lower is better (perplexity, bits per byte, Brier score): there an item's difference is
``b - a``. With several tasks the difference is the weighted mean over tasks of each task's mean over items.
Which test is used depends on the items alone:

| items | test |
|---|---|
| 0 or 1, one task, or several with the same size and weight | McNemar's exact test on the pooled items |
| 0 or 1, tasks of other sizes or weights | sign-flip permutation test, stratified by task |
| anything else | paired bootstrap, stratified by task |

McNemar's exact test (McNemar 1947, Psychometrika 12:153; Edwards 1948 for the exact form) is binomial: of
the items on which the models differ, each favours either with probability 1/2 when they are equally good.
Flipping the signs of the items' differences at random (Fisher 1935, The Design of Experiments, section 21)
is the same null distribution for a weighted sum, drawn instead of added up. The paired bootstrap (Efron and
Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 16; Koehn 2004, EMNLP) draws items with
replacement within each task; its p-value is the share of draws that lie at least as far from the observed
difference as that lies from zero. Drawn p-values count the observation itself, ``(k + 1) / (draws + 1)``
(Phipson and Smyth 2010), so they are never zero. Intervals are 95 % percentile intervals of the paired
bootstrap whatever the test. All p-values are two-sided.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from evomerge.errors import FitnessError

Floats = NDArray[np.float64]
Test = Literal["McNemar", "sign-flip permutation", "bootstrap"]

_FEW_VALUES = 64
_DRAWN_AT_ONCE = 4_000_000  # items; 32 MB of indices


@dataclass(frozen=True)
class Comparison:
    """The outcome of comparing model `a` with model `b` on the same items.

    Attributes:
        difference: mean over tasks of the mean over items; positive when `a` is better.
        p_value: two-sided.
        interval: 95 % interval of `difference`.
        test: which test gave `p_value`.
        items: pairs of items compared.
        wins, losses: items on which `a` was better, and worse.
        tasks: number of tasks.
    """

    difference: float
    p_value: float
    interval: tuple[float, float]
    test: Test
    items: int
    wins: int
    losses: int
    tasks: int = 1

    @property
    def significant(self) -> bool:
        """Whether `p_value` is below 0.05."""
        return self.p_value < 0.05


def compare(
    a: Mapping[str, Floats],
    b: Mapping[str, Floats],
    *,
    lower_is_better: Collection[str] = (),
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    resamples: int = 10_000,
) -> Comparison:
    """Compare two models task by task on the same items.

    Args:
        a, b: for the same tasks, one value per item in the same order, shape ``(items,)``. Items that either
            model was not run on (NaN) are left out.
        lower_is_better: tasks whose values are better when smaller.
        weights: by task, positive, 1 for those left out; only their ratios matter.
        seed: of the generator that the drawing tests and the interval use.
        resamples: draws.

    Raises:
        FitnessError: the tasks or the numbers of items differ, or a task has no items in common.
    """
    differences = _differences(a, b, lower_is_better)
    given = np.array([(weights or {}).get(task, 1.0) for task in differences])
    if not (np.isfinite(given).all() and (given > 0).all()):
        raise FitnessError(f"task weights are {given.tolist()}", "positive numbers")
    share = given / given.sum()
    strata = list(differences.values())
    observed = _weighted([np.array([d.mean()]) for d in strata], share)[0]
    rng = np.random.default_rng(seed)
    drawn = _weighted([_bootstrap_means(d, rng, resamples) for d in strata], share)
    low, high = np.quantile(drawn, [0.025, 0.975])
    wins, losses = (sum(int((sign * d > 0).sum()) for d in strata) for sign in (1, -1))
    test: Test
    if not all(_binary(a[task]) and _binary(b[task]) for task in differences):
        # One item per task has no spread to draw from, and says nothing.
        enough = all(d.size > 1 for d in strata)
        test, p_value = "bootstrap", _share_beyond(drawn - observed, observed) if enough else 1.0
    elif len({d.size for d in strata}) == 1 and np.ptp(given) == 0:
        test, p_value = "McNemar", mcnemar(wins, losses)
    else:
        flipped = _weighted([_flipped_means(d, rng, resamples) for d in strata], share)
        test, p_value = "sign-flip permutation", _share_beyond(flipped, observed)
    return Comparison(
        difference=float(observed),
        p_value=p_value,
        interval=(float(low), float(high)),
        test=test,
        items=sum(d.size for d in strata),
        wins=wins,
        losses=losses,
        tasks=len(strata),
    )


def mcnemar(wins: int, losses: int) -> float:
    """McNemar's exact two-sided p-value from the two counts of items on which the models differ."""
    return min(1.0, 2.0 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def _differences(
    a: Mapping[str, Floats], b: Mapping[str, Floats], lower_is_better: Collection[str]
) -> dict[str, Floats]:
    if set(a) != set(b) or not a:
        raise FitnessError(f"tasks {sorted(a)} against {sorted(b)}", "a paired test needs the same tasks, at least one")
    differences: dict[str, Floats] = {}
    for task in a:
        if a[task].shape != b[task].shape:
            raise FitnessError(
                f"task {task!r} has {a[task].size} items against {b[task].size}", "a paired test needs the same items"
            )
        gain = b[task] - a[task] if task in lower_is_better else a[task] - b[task]
        differences[task] = gain[~np.isnan(gain)]
        if not differences[task].size:
            raise FitnessError(f"task {task!r} has no items that both models were run on", "at least one")
    return differences


def _binary(values: Floats) -> bool:
    return bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())


def _weighted(per_task: list[Floats], share: Floats) -> Floats:
    """Weighted sum over tasks of arrays of shape ``(draws,)``."""
    return np.asarray(share @ np.stack(per_task))


def _share_beyond(drawn: Floats, observed: float) -> float:
    """Two-sided p-value: how often a draw is at least as far from zero as the observation."""
    tolerance = 1e-12 * max(1.0, abs(observed))  # sums in another order differ in the last digits
    beyond = int((np.abs(drawn) >= abs(observed) - tolerance).sum())
    return (beyond + 1) / (drawn.size + 1)


def _bootstrap_means(differences: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Means of `resamples` samples drawn with replacement, shape ``(resamples,)``."""
    n = differences.size
    values, counts = np.unique(differences, return_counts=True)
    if values.size <= _FEW_VALUES:  # how often each value is drawn is multinomial: no need to draw every item
        return np.asarray(rng.multinomial(n, counts / n, size=resamples) @ values / n)
    means = np.empty(resamples)
    step = max(1, _DRAWN_AT_ONCE // n)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        means[start : start + size] = differences[rng.integers(n, size=(size, n))].mean(axis=1)
    return means


def _flipped_means(differences: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Means after flipping signs at random, for differences of -1, 0 and 1; shape ``(resamples,)``."""
    differing = int(np.count_nonzero(differences))
    return np.asarray((2.0 * rng.binomial(differing, 0.5, size=resamples) - differing) / differences.size)

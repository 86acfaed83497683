"""Paired tests: is one model better than another on the same items?

Every comparison is of `a` against `b` and is signed so that positive means that `a` is better, also for
metrics where lower is better (perplexity, bits per byte, Brier score): there an item's difference is
``b - a``. With several tasks the difference is the weighted mean over tasks of each task's mean over items.
Which test is used depends on the items alone:

| items | test |
|---|---|
| 0 or 1, one task, or several with the same size and weight | McNemar's exact test on the pooled items |
| anything else | sign-flip permutation test |

McNemar's exact test (McNemar 1947, Psychometrika 12:153; Edwards 1948 for the exact form) is binomial: of
the items on which the models differ, each favours either with probability 1/2 when they are equally good.
Flipping the signs of the items' differences at random (Fisher 1935, The Design of Experiments, section 21) is
the same null distribution for a weighted sum of any values: all ways to flip them where these are no more than the
draws, and else drawn. Of n items p is at least ``2 / 2^n``, however large their differences: two items prove nothing.
Drawn p-values count the observation itself, ``(k + 1) / (draws + 1)`` (Phipson and Smyth 2010), so they are never
zero. All p-values are two-sided.

Intervals are 95 % percentile intervals of the paired bootstrap, which draws items with replacement within each task
(Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; Koehn 2004, EMNLP). Of few items these are
too narrow (Hesterberg 2015, The American Statistician 69:371, section 4.2): their ends are moved outwards by what
Student's t has beyond the normal distribution, at the degrees of freedom of Welch and Satterthwaite, and by
``sqrt(n / (n - 1))``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtri, stdtrit

from evomerge.errors import FitnessError

Floats = NDArray[np.float64]
Test = Literal["McNemar", "sign-flip permutation"]

_FEW_VALUES = 64
_DRAWN_AT_ONCE = 4_000_000  # items; 32 MB of indices


@dataclass(frozen=True)
class Comparison:
    """The outcome of comparing model `a` with model `b` on the same items.

    Attributes:
        difference: mean over tasks of the mean over items; positive when `a` is better.
        p_value: two-sided.
        interval: 95 % interval of `difference`; without bounds where a task has one item, whose spread nobody knows.
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

    @property
    def bounded(self) -> bool:
        """Whether `interval` has bounds."""
        return bool(np.isfinite(self.interval).all())


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
        seed: of the generator that drawn tests and the interval use.
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
    wins, losses = (sum(int((sign * d > 0).sum()) for d in strata) for sign in (1, -1))
    test: Test
    if (
        all(_binary(a[task]) and _binary(b[task]) for task in differences)
        and len({d.size for d in strata}) == 1
        and np.ptp(given) == 0
    ):
        test, p_value = "McNemar", mcnemar(wins, losses)
    else:
        terms = np.concatenate([part * d / d.size for part, d in zip(share, strata, strict=True)])
        test, p_value = "sign-flip permutation", sign_flip(terms, rng, resamples)
    return Comparison(
        difference=float(observed),
        p_value=p_value,
        interval=_interval(drawn, float(observed), strata, share),
        test=test,
        items=sum(d.size for d in strata),
        wins=wins,
        losses=losses,
        tasks=len(strata),
    )


def mcnemar(wins: int, losses: int) -> float:
    """McNemar's exact two-sided p-value from the two counts of items on which the models differ."""
    return min(1.0, 2.0 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def sign_flip(terms: Floats, rng: np.random.Generator, draws: int = 10_000) -> float:
    """Two-sided p-value of a sum whose terms are as likely of one sign as of the other.

    Args:
        terms: shape ``(items,)``.
        rng: draws signs where there are more ways to give them than `draws`.
        draws: how many.
    """
    sizes, counts = np.unique(np.abs(terms[terms != 0]), return_counts=True)
    tolerance = 1e-12 * (1.0 + abs(terms.sum()))  # sums in another order differ in the last digits
    least = abs(float(terms.sum())) - tolerance
    count = int(counts.sum())
    if 2**count <= draws:
        ways = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float((np.abs((1 - 2 * ways) @ np.repeat(sizes, counts)) >= least).mean())
    if sizes.size <= _FEW_VALUES:  # how often a value is positive is binomial: no need to draw every item's sign
        sums = (2.0 * rng.binomial(counts, 0.5, size=(draws, sizes.size)) - counts) @ sizes
    else:
        sums, step = np.empty(draws), max(1, _DRAWN_AT_ONCE // terms.size)
        for start in range(0, draws, step):
            positive = rng.integers(0, 2, size=(min(step, draws - start), terms.size), dtype=np.int8)
            sums[start : start + step] = 2.0 * (positive.astype(np.float64) @ terms) - terms.sum()
    return (int((np.abs(sums) >= least).sum()) + 1) / (draws + 1)


def _interval(drawn: Floats, observed: float, strata: list[Floats], share: Floats) -> tuple[float, float]:
    """Of draws of the bootstrap, as far from the observation as so few items need."""
    sizes = np.array([d.size for d in strata])
    if sizes.min() < 2:
        return -np.inf, np.inf
    variances = share**2 * np.array([d.var(ddof=1) for d in strata]) / sizes
    if not variances.any():
        return observed, observed
    freedom = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
    narrow = np.sqrt((variances * (sizes - 1) / sizes).sum() / variances.sum())
    low, high = observed + (np.quantile(drawn, [0.025, 0.975]) - observed) * (
        stdtrit(freedom, 0.975) / ndtri(0.975) / narrow
    )
    return float(low), float(high)


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

"""Where quadratics miss most, by direction from the origin: what MAP's Bayesian sampling goes by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.strategies.bases.quadratic import Link, Quadratic

Array = NDArray[np.float64]

MOST_BINNED = 10
"""Free genes: 512 bins, which hundreds of samples hardly fill."""

TEMPERATURE, DOUBT, NEAREST = 0.07, 0.5, 0.2  # of the softmax; of the standard error; of a radius, of its largest


class AngleBins:
    """Bins of directions in the first orthant, and how much each wants another sample.

    The Bayesian variant of Li et al., "MAP" (arXiv 2406.07529, appendix): points are seen in hyperspherical
    coordinates, every angle from 0 to 90 degrees is cut into 4 (below four genes) or 2, and a bin is drawn by a
    softmax, at temperature 0.07, of what the fits miss in it: the mean of the squares and half of its standard error.

    Unlike the public code: squares are shares of an objective's variance and summed over all objectives, so that a
    temperature means the same for every metric; what a fit misses at a point is what it would miss without that
    point; a bin without points counts as the worst, where there it is never drawn; and radii go up to the side
    of the cube, where there they end at 0.8.
    """

    def __init__(self, genes: int) -> None:
        self._genes, self._parts = genes, 4 if genes < 4 else 2

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self._parts ** (self._genes - 1))

    def of(self, points: Array) -> NDArray[np.int64]:
        """The bin of each point of the unit cube, ``(k, n)``."""
        if self._genes == 1:
            return np.zeros(len(points), dtype=np.int64)
        rest = np.sqrt(np.cumsum(np.square(points[:, ::-1]), axis=1)[:, ::-1])  # of the coordinates from here on
        angles = np.arctan2(rest[:, 1:], points[:, :-1])
        parts = np.minimum((angles / (np.pi / 2) * self._parts).astype(np.int64), self._parts - 1)
        return np.asarray(np.ravel_multi_index(tuple(parts.T), (self._parts,) * (self._genes - 1)), dtype=np.int64)

    def chances(self, points: Array, values: Array, link: Link) -> Array:
        """The probability of each bin to be sampled next.

        Args:
            points: told so far, ``(k, n)``, at least as many as a quadratic has coefficients.
            values: what they scored, ``(k, objectives)``.
            link: of the fits.
        """
        missed = np.zeros(len(points))
        for column in values.T:
            variance = float(column.var())
            if variance > 0:
                missed += np.square(Quadratic.fit(points, column, link).missed(points, column)) / variance
        bins, whole = self.of(points), float(missed.std())
        scores = np.full(self.count, np.nan)
        for number in np.unique(bins):
            here = missed[bins == number]
            spread = float(here.std()) if len(here) > 1 else whole
            scores[number] = here.mean() + DOUBT * spread / np.sqrt(len(here))
        scores = np.where(np.isnan(scores), np.nanmax(scores), scores)
        heat = np.exp((scores - scores.max()) / TEMPERATURE)
        return np.asarray(heat / heat.sum())

    def draw(self, chances: Array, rng: np.random.Generator) -> Array:
        """A point of a bin drawn by its chance: uniform in its angles and in its distance up to the cube's side."""
        number = int(rng.choice(len(chances), p=chances))
        if self._genes == 1:
            return np.asarray(rng.uniform(NEAREST, 1.0, size=1))
        parts = np.array(np.unravel_index(number, (self._parts,) * (self._genes - 1)))
        angles = (parts + rng.random(self._genes - 1)) * (np.pi / 2) / self._parts
        sines = np.append(1.0, np.cumprod(np.sin(angles)))
        direction = sines * np.append(np.cos(angles), 1.0)
        return np.asarray(np.clip(direction / direction.max() * rng.uniform(NEAREST, 1.0), 0.0, 1.0))

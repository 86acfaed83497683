"""How M2N2 makes networks of raw weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.genomes.arrays import ArrayGenome, ArraySpec
from evomerge.genomes.genome import Genome
from evomerge.strategies.variation.base import Settings, layout_of
from evomerge.strategies.variation.weight_kernels import breed

Rng = np.random.Generator
SIGMA = 0.01
"""Standard deviation of noise, the paper's public code's for networks from scratch."""


class WeightVariation:
    """Children of raw weights: mix and split of every chromosome, then noise; implements `variation.Variation`.

    Networks that were trained already are not mutated unless that is asked for.

    Args:
        spec: the weights.
        settings: how.

    Raises:
        ConfigError: a pattern of `Settings.chromosomes` that no weight has; neither crossover nor mutation.
    """

    def __init__(self, spec: ArraySpec, settings: Settings) -> None:
        self._spec, self._settings = spec, settings
        self.starts = len(spec.seeds) or None
        self.fixed = len(spec.seeds)
        self._sigma = settings.sigma(0.0 if spec.seeds else SIGMA)
        self._spread = settings.spread if isinstance(settings.spread, int | float) else SIGMA
        ranges, self._order = layout_of(spec, settings.chromosomes)
        self._chromosomes = np.array(ranges, dtype=np.int64)
        self._how = settings.split, settings.path == "slerp", settings.angle == "whole"
        self._bound = np.float32(spec.bound)
        self._back = None if self._order is None else np.argsort(self._order)

    def start(self, number: int, rng: Rng) -> Genome:
        """A seed; else the spec's start with noise."""
        if number < len(self._spec.seeds):
            return self._spec.seeds[number]
        start = self._spec.initial.array
        return self._made(start, start, self._spread, rng)

    def child(self, first: Genome, second: Genome | None, rng: Rng) -> Genome:
        """The paper's child: mix and split of every chromosome uniform; then mutation."""
        assert isinstance(first, ArrayGenome), "genomes of raw weights"
        if second is None or not self._settings.crossover:
            # Alone and without mutation it would be a copy.
            return self._made(first.array, first.array, self._sigma or SIGMA, rng)
        assert isinstance(second, ArrayGenome), "genomes of raw weights"
        return self._made(first.array, second.array, self._sigma, rng)

    def pack(self, genomes: Sequence[Genome]) -> Any:
        """All in one array."""
        stacked = [genome.array for genome in genomes if isinstance(genome, ArrayGenome)]
        return np.array(stacked, dtype=np.float32).reshape(len(genomes), len(self._spec))

    def unpack(self, packed: Any) -> list[Genome]:
        """The genomes of `pack`."""
        return [self._spec.genome(row) for row in packed]

    def _made(self, a: NDArray[np.float32], b: NDArray[np.float32], sigma: float, rng: Rng) -> ArrayGenome:
        """A genome of two arrays; with one of them twice, that one with noise."""
        alone = a is b
        count = 2 * len(self._chromosomes)
        draws = np.zeros(count) if alone else rng.random(count)
        key = np.uint64(rng.bit_generator.random_raw()) if sigma else _NO_KEY
        if self._order is not None and not alone:
            a, b = a[self._order], b[self._order]
        child = np.empty_like(a)
        noise = _quantiles(sigma)
        inside = breed(a, b, self._chromosomes, draws, *self._how, noise, key, self._bound, child)
        return self._spec.taken(child if self._back is None or alone else child[self._back], inside)


_NO_KEY = np.uint64(0)


@functools.lru_cache(maxsize=8)
def _quantiles(sigma: float) -> NDArray[np.float32]:
    """Of the normal distribution around zero, in the middle of 4,096 equal shares; none for a deviation of zero.

    None lies beyond 3.7 standard deviations. A larger table would not stay in the processor's first cache.
    """
    if not sigma:
        return np.empty(0, np.float32)
    share, normal = 2**-12, NormalDist()
    upper = np.array([sigma * normal.inv_cdf(0.5 + (number + 0.5) * share) for number in range(2**11)], np.float32)
    return np.concatenate([-upper[::-1], upper])

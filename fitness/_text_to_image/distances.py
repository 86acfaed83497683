"""Distances between what a model draws and real images, of features: KID and FID."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import FitnessError

Features = NDArray[np.float64]
"""Of shape (images, width)."""


class Real:
    """Features of real images, and what distances need of them alone: computed once.

    Args:
        features: of at least two images.

    Raises:
        FitnessError: fewer, or values that are not finite.
    """

    def __init__(self, features: Features) -> None:
        if len(features) < 2:
            raise FitnessError(f"there are features of {len(features)} real images", "two or more")
        if not np.isfinite(features).all():
            raise FitnessError("features of real images are not finite", "a network that gives finite features")
        self.features = np.asarray(features, dtype=np.float64)
        kernel = _kernel(self.features, self.features)
        count = len(features)
        self.within = float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))
        self.mean = self.features.mean(axis=0)
        self._root: Features | None = None

    @property
    def root(self) -> Features:
        """The symmetric square root of their covariance."""
        if self._root is None:
            self._root = _root(np.atleast_2d(np.cov(self.features, rowvar=False)))
        return self._root

    def kid(self, drawn: Features) -> NDArray[np.float64]:
        """By drawn image what it tells of the kernel inception distance: their mean is the distance.

        The mean is the unbiased estimate of the squared maximum mean discrepancy with the kernel ``(x y / d + 1)^3``
        (Binkowski et al. 2018, arXiv 1801.01401, section 4): with m drawn and n real images,
        ``1/(m(m-1)) sum_{i != j} k(x_i, x_j) + 1/(n(n-1)) sum_{i != j} k(y_i, y_j) - 2/(mn) sum_ij k(x_i, y_j)``.

        Image i has ``2/(m-1) sum_{j != i} k(x_i, x_j) - 2/n sum_j k(x_i, y_j)`` plus what is equal for all: the
        influence of that image (the projection of a U-statistic, Hoeffding 1948, section 5). So the spread of these
        values is that of the distance over other noise, and paired tests of two models, image by image, are right.

        Args:
            drawn: features of at least two images.

        Returns:
            Shape ``(images,)``.
        """
        own = _kernel(drawn, drawn)
        count = len(drawn)
        others = (own.sum(axis=1) - np.diag(own)) / (count - 1)
        across = _kernel(drawn, self.features).mean(axis=1)
        found: NDArray[np.float64] = 2 * others - others.mean() + self.within - 2 * across
        return found

    def fid(self, drawn: Features) -> float:
        """The Frechet distance of two Gaussians (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

        ``|m - m_r|^2 + tr(C + C_r - 2 (C_r^1/2 C C_r^1/2)^1/2)``.

        Args:
            drawn: features of at least two images.
        """
        covariance = np.atleast_2d(np.cov(drawn, rowvar=False))
        inner = self.root @ covariance @ self.root
        values = np.linalg.eigvalsh((inner + inner.T) / 2)
        shared = np.sqrt(np.clip(values, 0.0, None)).sum()
        far = float(np.square(drawn.mean(axis=0) - self.mean).sum())
        return far + float(np.trace(covariance)) + float(np.square(self.root).sum()) - 2.0 * float(shared)


def _kernel(one: Features, other: Features) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (one @ other.T / one.shape[1] + 1.0) ** 3
    return found


def _root(matrix: Features) -> Features:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    found: Features = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    return found

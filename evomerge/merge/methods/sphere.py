"""Geometry on the unit sphere by coefficients: points are combinations of the inputs' directions.

Lengths and angles of such points follow from the inner products of the inputs, so that means on the sphere are
iterated on a handful of numbers and the tensors are read twice, for the products and for the result, whatever the
number of iterations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import PoolError
from evomerge.merge.mixes.mix import Statistics

Floats = NDArray[np.float64]
Array = TypeVar("Array", NDArray[np.float64], torch.Tensor)
ZERO = 1e-8
"""A tensor whose norm is no larger has no direction."""
OPPOSITE = -0.9995
"""Directions with a smaller cosine are opposite: what leads from one to the other is rounding."""


def finite_gram(statistics: Statistics, differences: bool = False) -> Floats:
    """The inner products of the inputs, or of their task vectors.

    Raises:
        PoolError: they are not finite, as an input (or the base) has values that are not.
    """
    return finite(statistics.gram(differences))


def finite(gram: Array) -> Array:
    """Inner products that are checked to be finite, as they were given.

    Those on an accelerator are not looked at: what follows from them is not finite either.

    Args:
        gram: of shape ``(inputs, inputs, ...)``.

    Raises:
        PoolError: they are not finite, as an input (or the base) has values that are not.
    """
    if isinstance(gram, np.ndarray) and not np.isfinite(gram).all():
        bad = [i + 1 for i in range(len(gram)) if not np.isfinite(gram[i, i]).all()]
        which = "all inputs of the merge, or their base, have" if len(bad) == len(gram) else f"input {bad[0]} has"
        raise PoolError(
            f"{which} values that are NaN, infinite or too large to be squared",
            "what depends on norms or angles needs finite values",
            "repair the model or leave it out",
        )
    return gram


def check_finite(sums: Mapping[int, float], inputs: int) -> None:
    """Check that sums of magnitudes are finite.

    Args:
        sums: by input, from 0; inputs that do not count may be left out.
        inputs: how many there are.

    Raises:
        PoolError: they are not finite, as an input (or the base) has values that are not.
    """
    finite(np.diag([sums.get(i, 0.0) for i in range(inputs)]))


def arc(cosine: Array, t: float, straight: float) -> tuple[Array, Array]:
    """Factors of two vectors at `t` along the arc between them (Shoemake, 1985), of the shape of `cosine`.

    Where the squared sine of the angle is at most `straight` they are interpolated linearly.
    """
    xp = arrays_of(cosine)
    linear = 1 - cosine * cosine <= straight
    angle = xp.arccos(xp.where(linear, 0.0, xp.clip(cosine, -1, 1)))
    sine = xp.sin(angle)
    return xp.where(linear, 1 - t, xp.sin((1 - t) * angle) / sine), xp.where(linear, t, xp.sin(t * angle) / sine)


def arrays_of(numbers: Floats | torch.Tensor) -> Any:
    """The library that float64 numbers are of: numpy, or torch where they stay on an accelerator."""
    return torch if isinstance(numbers, torch.Tensor) else np


class Sphere:
    """The unit sphere in the span of a tensor's inputs.

    Args:
        gram: inner products of the inputs, of shape ``(inputs, inputs)``.
        zero: inputs whose norm is no larger have no direction.

    Attributes:
        norms: of the inputs.
        directed: which of them have a direction.
        cosines: inner products of their directions; zero for those that have none.
    """

    def __init__(self, gram: Floats, zero: float = ZERO) -> None:
        self.norms: Floats = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
        self.directed = self.norms > zero
        self._inverse: Floats = np.where(self.directed, 1 / np.where(self.directed, self.norms, 1.0), 0.0)
        self.cosines: Floats = np.clip(gram * np.outer(self._inverse, self._inverse), -1.0, 1.0)
        np.fill_diagonal(self.cosines, self.directed)

    def length(self, point: Floats) -> float:
        """The norm of a combination of directions."""
        return math.sqrt(max(0.0, float(point @ self.cosines @ point)))

    def mean(self, weights: Floats) -> Floats | None:
        """The direction of a weighted sum of directions; ``None`` where they cancel."""
        total = np.where(self.directed, weights, 0.0)
        length = self.length(total)
        return total / length if length > 1e-6 * float(np.abs(total).sum()) else None

    def tangent(self, point: Floats, weights: Floats) -> Floats | None:
        """The weighted sum of the logarithms of the directions at `point`: ``sum w phi/sin(phi) (u - cos(phi) p)``.

        ``None`` where one of them is opposite to the point, as every arc between the two is equally short.
        """
        used = self.directed & (weights != 0)
        cosines = np.clip(self.cosines @ point, -1.0, 1.0)
        if bool((cosines[used] < OPPOSITE).any()):
            return None
        sines = np.sqrt(1 - cosines * cosines)
        ratio = np.where(sines > 1e-6, np.arccos(cosines) / np.where(sines > 1e-6, sines, 1.0), 1.0)
        factors = np.where(used, weights * ratio, 0.0)
        return np.asarray(factors - float(factors @ cosines) * point)

    def step(self, point: Floats, tangent: Floats) -> Floats:
        """The exponential of a tangent at `point`: ``cos|T| p + sin|T| T/|T|``, of length one."""
        length = self.length(tangent)
        if length == 0:
            return point
        moved = math.cos(length) * point + (math.sin(length) / length) * tangent
        return np.asarray(moved / self.length(moved))

    def factors(self, point: Floats, norm: float) -> Sequence[float]:
        """Factors on the inputs of the vector of length `norm` in the direction of `point`."""
        return [float(factor) for factor in norm * point * self._inverse]

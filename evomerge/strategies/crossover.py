"""Children of two arrays of numbers: a mix and a split, as M2N2 makes them, and mutation.

Abrantes, Lange, Tang, "Competition and Attraction Improve Model Fusion" (arXiv 2508.16204), section 3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
"""An array of float32 or float64."""

Path = Literal["slerp", "linear"]
Angle = Literal["segment", "whole"]

_STRAIGHT = 0.9995  # beyond this cosine the arc is a straight line to float32, as for the merge method slerp
_ZERO = 1e-8  # an array whose norm is no larger has no direction


@dataclass(frozen=True)
class Cut:
    """How one chromosome of a child is made of its parents'.

    Attributes:
        begin, end: the chromosome's elements.
        at: the split: where, of these, the roles of the parents change; `begin` or `end` for no split.
        mix: w of the paper: elements before the split are at `mix` from A to B, those after it at ``1 - mix``.
    """

    begin: int
    end: int
    at: int
    mix: float


def child_of(
    a: Floats, b: Floats, cuts: Sequence[Cut], path: Path = "slerp", angle: Angle = "segment", out: Floats | None = None
) -> Floats:
    """``concat[P_w(A_<, B_<), P_{1-w}(A_>=, B_>=)]`` for every chromosome, P the arc or the line (section 3.1).

    Args:
        a, b: the parents, one-dimensional, of one floating dtype; not written to.
        cuts: of chromosomes that cover the array; elements outside of all are A's.
        path: ``slerp`` follows the arc between the two (Shoemake, 1985), ``linear`` the line.
        angle: of each segment (equation 2 of the paper), or once of the whole array, as the paper's public code has it.
        out: receives the child; a new array for ``None``.

    Returns:
        The child, of the parents' dtype.
    """
    child = np.empty_like(a) if out is None else out
    if out is not a and sum(cut.end - cut.begin for cut in cuts) < len(a):
        child[:] = a
    for begin, end, first, second in _segments(a, b, cuts, path, angle):
        np.multiply(a[begin:end], a.dtype.type(first), out=child[begin:end])
        child[begin:end] += b[begin:end] * b.dtype.type(second)
    return child


def mutated_child_of(
    a: Floats,
    b: Floats,
    cuts: Sequence[Cut],
    path: Path,
    angle: Angle,
    sigma: float,
    rng: np.random.Generator,
    bound: float,
) -> tuple[Floats, bool]:
    """What `child_of` and then `mutate_` make of two float32 arrays that the cuts cover, bit for bit, in one pass.

    Returns:
        The child, and whether all of it lies in ``[-bound, bound]``.
    """
    from evomerge.strategies.weight_kernels import mix_and_mutate  # numba takes half a second to import

    child, bits, table = np.empty_like(a), _bits(len(a), rng), _quantiles(sigma)
    inside, limit = True, np.float32(bound)
    for begin, end, first, second in _segments(a, b, cuts, path, angle):
        inside &= mix_and_mutate(a, b, begin, end, np.float32(first), np.float32(second), bits, table, limit, child)
    return child, inside


def mutate_(array: Floats, sigma: float, rng: np.random.Generator) -> None:
    """Add Gaussian noise of standard deviation `sigma` to every element, in place."""
    if array.dtype == np.float32:
        array += _noise(len(array), sigma, rng)
    else:
        array += rng.standard_normal(array.shape) * sigma


def _noise(count: int, sigma: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Normal noise from a table, in a third of the time of numpy's: drawing it is a search's main cost.

    Every number is one of 4,096 equally likely quantiles, of which none lies beyond 3.7 standard deviations. A larger
    table would not stay in the processor's first cache.
    """
    return _quantiles(sigma).take(_bits(count, rng) >> np.uint16(4))


def _bits(count: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    return rng.bit_generator.random_raw((count + 3) // 4).view(np.uint16)[:count]


@functools.lru_cache(maxsize=8)
def _quantiles(sigma: float) -> NDArray[np.float32]:
    """Of the normal distribution around zero, in the middle of 4,096 equal shares."""
    share, normal = 2**-12, NormalDist()
    upper = np.array([sigma * normal.inv_cdf(0.5 + (number + 0.5) * share) for number in range(2**11)], np.float32)
    return np.concatenate([-upper[::-1], upper])


def _segments(
    a: Floats, b: Floats, cuts: Sequence[Cut], path: Path, angle: Angle
) -> Iterator[tuple[int, int, float, float]]:
    """Where each segment begins and ends, and the factors of A and of B there."""
    whole = _omega(a, b) if path == "slerp" and angle == "whole" else None
    for cut in cuts:
        for begin, end, mix in ((cut.begin, cut.at, cut.mix), (cut.at, cut.end, 1.0 - cut.mix)):
            if begin < end:
                omega = whole if path == "linear" or angle == "whole" else _omega(a[begin:end], b[begin:end])
                yield begin, end, *_factors(mix, omega)


def _omega(a: Floats, b: Floats) -> float | None:
    """The angle between two arrays; ``None`` where they are zero, nearly parallel or opposite: the path is the line."""
    aa, bb, ab = float(np.dot(a, a)), float(np.dot(b, b)), float(np.dot(a, b))
    norms = math.sqrt(aa) * math.sqrt(bb)
    if not (math.isfinite(norms) and math.sqrt(min(aa, bb)) > _ZERO):
        return None
    cosine = ab / norms
    return None if abs(cosine) > _STRAIGHT else math.acos(cosine)


def _factors(mix: float, omega: float | None) -> tuple[float, float]:
    if omega is None:
        return 1.0 - mix, mix
    return math.sin((1.0 - mix) * omega) / math.sin(omega), math.sin(mix * omega) / math.sin(omega)

"""Children of two arrays of numbers: a mix and a split, as M2N2 makes them.

Abrantes, Lange, Tang, "Competition and Attraction Improve Model Fusion" (arXiv 2508.16204), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
"""An array of float32 or float64."""

Interpolation = Literal["slerp", "linear"]
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
    a: Floats, b: Floats, cuts: Sequence[Cut], path: Interpolation = "slerp", angle: Angle = "segment"
) -> Floats:
    """``concat[P_w(A_<, B_<), P_{1-w}(A_>=, B_>=)]`` for every chromosome, P the arc or the line (section 3.1).

    Args:
        a, b: the parents, one-dimensional, of one floating dtype; not written to.
        cuts: of chromosomes that cover the array; elements outside of all are A's.
        path: ``slerp`` follows the arc between the two (Shoemake, 1985), ``linear`` the line.
        angle: of each segment (equation 2 of the paper), or once of the whole array, as the paper's public code has it.

    Returns:
        The child, of the parents' dtype.
    """
    child = a.copy()
    whole = _omega(a, b) if path == "slerp" and angle == "whole" else math.nan
    for cut in cuts:
        for begin, end, mix in ((cut.begin, cut.at, cut.mix), (cut.at, cut.end, 1.0 - cut.mix)):
            if begin < end:
                omega = whole if path == "linear" or angle == "whole" else _omega(a[begin:end], b[begin:end])
                first, second = factors_of(mix, omega)
                np.multiply(a[begin:end], a.dtype.type(first), out=child[begin:end])
                child[begin:end] += b[begin:end] * b.dtype.type(second)
    return child


def omega_of(aa: float, bb: float, ab: float) -> float:
    """The angle between two arrays of these inner products; NaN where the path is the line.

    That is where they are zero, nearly parallel or opposite.
    """
    norms = math.sqrt(aa) * math.sqrt(bb)
    if not (math.isfinite(norms) and math.sqrt(min(aa, bb)) > _ZERO):
        return math.nan
    cosine = ab / norms
    return math.nan if abs(cosine) > _STRAIGHT else math.acos(cosine)


def factors_of(mix: float, omega: float) -> tuple[float, float]:
    """Of A and of B, at `mix` on the path from A to B."""
    if math.isnan(omega):
        return 1.0 - mix, mix
    return math.sin((1.0 - mix) * omega) / math.sin(omega), math.sin(mix * omega) / math.sin(omega)


def _omega(a: Floats, b: Floats) -> float:
    return omega_of(float(np.dot(a, a)), float(np.dot(b, b)), float(np.dot(a, b)))

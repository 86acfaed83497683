"""Spherical interpolation between two models."""

from __future__ import annotations

import math

import numpy as np
import torch

from evomerge.merge.methods.registry import Values, mix_method
from evomerge.merge.methods.sphere import ZERO, finite_gram
from evomerge.merge.mixes.mix import Mix, Statistics, weighted
from evomerge.recipes.method_spec import ParameterSpec

_COLLINEAR = 0.9995  # beyond this cosine the arc is a straight line to float32


def _unchanged(values: Values) -> int | None:
    return {0.0: 0, 1.0: 1}.get(float(values["t"]))


@mix_method(
    "slerp",
    ParameterSpec("t", 0.5, low=0.0, high=1.0, minimum=0.0, maximum=1.0, searched=True),
    summary="spherical interpolation from the first model (t = 0) to the second (t = 1)",
    family="spheres",
    idempotent=True,
    min_inputs=2,
    max_inputs=2,
    unchanged=_unchanged,
)
def slerp(values: Values, statistics: Statistics) -> Mix:
    """``[sin((1-t) O) a + sin(t O) b] / sin O`` with O the angle between the two tensors (Shoemake, 1985).

    For two models, whose mean by it is no shorter than they are. Tensors that are zero or nearly collinear
    (|cos O| > 0.9995) are interpolated linearly.
    """
    gram = finite_gram(statistics)
    return weighted(arc_factors(gram[0, 0], gram[0, 1], gram[1, 1], float(values["t"])))


def arc_factors_there(aa: torch.Tensor, ab: torch.Tensor, bb: torch.Tensor, t: float) -> tuple[torch.Tensor, ...]:
    """`arc_factors` of inner products that only an accelerator knows: float64, like the factors, and no dimension."""
    norms = aa.sqrt(), bb.sqrt()
    cosine = (ab / (norms[0] * norms[1])).clamp(-1.0, 1.0)
    straight = (norms[0].minimum(norms[1]) <= ZERO) | (cosine.abs() > _COLLINEAR)
    omega = torch.where(straight, 1.0, cosine).acos()
    sine = omega.sin()
    first = torch.where(straight, float(np.float32(1) - np.float32(t)), ((1 - t) * omega).sin() / sine)
    return first, torch.where(straight, t, (t * omega).sin() / sine)


def arc_factors(aa: float, ab: float, bb: float, t: float) -> tuple[float, float]:
    """Factors of two vectors at `t` along the arc between them, from their inner products."""
    norms = math.sqrt(aa), math.sqrt(bb)
    straight = float(np.float32(1) - np.float32(t)), t
    if min(norms) <= ZERO:
        return straight
    cosine = max(-1.0, min(1.0, ab / (norms[0] * norms[1])))
    if abs(cosine) > _COLLINEAR:
        return straight
    omega = math.acos(cosine)
    return math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)

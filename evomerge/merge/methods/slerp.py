"""Spherical interpolation between two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evomerge.merge.methods.arithmetic import dot
from evomerge.merge.methods.registry import Context, Values, merge_method
from evomerge.method import ParameterSpec

_COLLINEAR = 0.9995  # beyond this cosine the arc is a straight line to float32
_ZERO = 1e-8


def _unchanged(values: Values) -> int | None:
    return {0.0: 0, 1.0: 1}.get(float(values["t"]))


def _angle(inputs: Sequence[torch.Tensor], base: torch.Tensor | None, *, t: float) -> dict[str, Any]:
    """The coefficients of both tensors; ``None`` where the interpolation is linear."""
    a, b = inputs
    norms = math.sqrt(dot(a, a)), math.sqrt(dot(b, b))
    if min(norms) <= _ZERO:
        return {"arc": None}
    cosine = max(-1.0, min(1.0, dot(a, b) / (norms[0] * norms[1])))
    if abs(cosine) > _COLLINEAR:
        return {"arc": None}
    omega = math.acos(cosine)
    return {"arc": (math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega))}


@merge_method(
    "slerp",
    ParameterSpec("t", 0.5, low=0.0, high=1.0, minimum=0.0, maximum=1.0),
    summary="spherical interpolation from the first model (t = 0) to the second (t = 1)",
    min_inputs=2,
    max_inputs=2,
    elementwise=True,
    statistics=_angle,
    unchanged=_unchanged,
)
def slerp(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    t: float,
    arc: tuple[float, float] | None,
    context: Context,
) -> torch.Tensor:
    """``[sin((1-t) O) a + sin(t O) b] / sin O`` with O the angle between the two tensors (Shoemake, 1985).

    Tensors that are zero or nearly collinear (|cos O| > 0.9995) are interpolated linearly.
    """
    first, second = arc if arc is not None else (float(np.float32(1) - np.float32(t)), t)
    # Rounded term by term, not fused: see `linear.add_tasks` on the order of additions.
    return (inputs[0] * first).add_(inputs[1] * second)

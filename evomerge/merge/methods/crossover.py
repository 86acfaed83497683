"""Two models, split: the child of M2N2."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merge.methods.blocks import Number, factor
from evomerge.merge.methods.registry import Context, Values, merge_method
from evomerge.merge.methods.rows import inner
from evomerge.merge.methods.slerp import arc_factors, arc_factors_there
from evomerge.recipes.method_spec import ParameterSpec

_SOURCE = {(1.0, 0.0): 0, (1.0, 1.0): 1, (0.0, 0.0): 1, (0.0, 1.0): 0}


def _unchanged(values: Values) -> int | None:
    return _SOURCE.get((float(values["split"]), float(values["t"])))


@merge_method(
    "crossover",
    ParameterSpec("t", 0.5, low=0.0, high=1.0, minimum=0.0, maximum=1.0, searched=True),
    ParameterSpec(
        "split",
        1.0,
        low=0.0,
        high=1.0,
        minimum=0.0,
        maximum=1.0,
        searched=True,
        summary="share of a tensor's elements that come before the split",
    ),
    ParameterSpec("path", "slerp", kind="categorical", choices=("slerp", "linear")),
    summary="interpolation at t before a split of each tensor and at 1 - t after it (M2N2, arXiv 2508.16204)",
    family="spheres",
    idempotent=True,
    min_inputs=2,
    max_inputs=2,
    unchanged=_unchanged,
)
def crossover(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    t: float,
    split: float,
    path: str,
    context: Context,
) -> torch.Tensor:
    """``concat[P_t(a_<, b_<), P_{1-t}(a_>=, b_>=)]``, P the arc (SLERP, as the method slerp does it) or the line.

    Each of the two parts has an angle of its own (equation 2 of the paper). For two models of one kind: a search
    decides which parts of either to keep together, where a mean mixes all of them alike.
    """
    a, b = (tensor.contiguous().view(-1) for tensor in inputs)
    out = torch.empty_like(a)
    at = round(split * a.numel())
    for begin, end, mix in ((0, at, t), (at, a.numel(), 1.0 - t)):
        if begin < end:
            u, v = a[begin:end], b[begin:end]
            first, second = (1.0 - mix, mix) if path == "linear" else _arc(u, v, mix)
            # Not by `alpha`: of one multiplication and addition some devices round once, others twice.
            torch.mul(u, factor(first), out=out[begin:end]).add_(v * factor(second))
    return out.view(inputs[0].shape)


def _arc(u: torch.Tensor, v: torch.Tensor, t: float) -> tuple[Number, ...]:
    uu, uv, vv = (inner(x.view(1, -1), y.view(1, -1))[0] for x, y in ((u, u), (u, v), (v, v)))
    if u.device.type != "cpu":
        return arc_factors_there(uu, uv, vv, t)
    return arc_factors(float(uu), float(uv), float(vv), t)

"""Nearswap: take another model's values where they are near the base's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merge.methods.registry import BASE, Context, merge_method
from evomerge.recipes.method_spec import ParameterSpec


@merge_method(
    "nearswap",
    ParameterSpec("t", 1e-4, low=0.0, high=0.01, minimum=0.0, searched=True, summary="largest change of an element"),
    summary="the base moved towards the model by at most t per element",
    family="choices",
    base="required",
    idempotent=True,
    max_inputs=1,
    elementwise=True,
    unchanged=lambda values: BASE if values["t"] == 0 else None,
)
def nearswap(inputs: Sequence[torch.Tensor], base: torch.Tensor | None, *, t: float, context: Context) -> torch.Tensor:
    """``a + sign(b - a) min(|b - a|, t)`` with `a` the base: elements that differ by at most `t` are the model's.

    mergekit's method of this name, without a paper. For a touch of one model in another: what they nearly agree on.
    """
    assert base is not None
    change = inputs[0] - base
    near = change.abs() <= t
    return torch.where(near, inputs[0], change.clamp_(-t, t).add_(base))

"""Hidden units that lie side by side, in pairs, merged in part: a layer of two models becomes narrower."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merge.methods.registry import Context, Values, merge_method
from evomerge.merge.methods.sphere import check_finite
from evomerge.recipes.method_spec import ParameterSpec

GIVEN = {"rows": 0, "cols": -1}
"""By the words of ``hidden``, the axis of hidden units in what gives them."""
READ = {"in_rows": 0, "in_cols": 1}
"""The same in matrices that read them."""


def _unchanged(values: Values) -> int | None:
    return 0 if values["hidden"] == "none" or values["ratio"] == 0 else None


@merge_method(
    "fold",
    ParameterSpec(
        "ratio",
        0.0,
        minimum=0.0,
        maximum=1.0,
        searched=True,
        initial=0.5,
        summary="share of the pairs that is merged, the first ones",
    ),
    ParameterSpec(
        "second", 0.5, minimum=0.0, maximum=1.0, summary="how much of a merged unit is of the second of its pair"
    ),
    ParameterSpec(
        "hidden",
        "none",
        kind="categorical",
        choices=("none", *GIVEN, *READ),
        summary="along which axis of the tensor hidden units lie, and whether it gives or reads them",
    ),
    ParameterSpec(
        "stretches", 1, low=1, high=2, kind="integer", minimum=1, maximum=8, summary="how many layers lie in one tensor"
    ),
    summary="pairs of hidden units side by side, merged in part (PLeaS, arXiv 2407.02447)",
    family="means",
    max_inputs=1,
    unchanged=_unchanged,
)
def fold(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    ratio: float,
    second: float,
    hidden: str,
    stretches: int,
    context: Context,
) -> torch.Tensor:
    """Of n pairs ``(i, n + i)`` along an axis the first ``ratio n`` become one unit, in the place of the first.

    In a tensor that gives hidden units it is ``theta_i = (1 - second) theta_i + second theta_(n+i)``, in one that reads
    them ``theta_i + theta_(n+i)``: what was read of either is read of both. The place of the second is left zero. The
    two halves of an axis (of each of its ``stretches``: gate and up in one matrix) are the units of two models, the
    most alike first, as `evomerge align --ratio 0` writes them; with equal ratios this is then its `--ratio`, in a
    wider model. So the shares of PLeaS, one for each layer, are genes: `search_space=zipped`. What does not come in
    pairs stays. For two models from different starts.
    """
    (x,) = inputs
    if hidden == "none" or (hidden in READ and x.dim() != 2) or not x.dim() or x.dim() > 2:
        return x
    axis = GIVEN[hidden] if hidden in GIVEN else READ[hidden]
    pairs = x.shape[axis] // (2 * stretches)
    count = round(ratio * pairs)
    if not count:
        return x
    check_finite({0: float(x.double().sum())}, 1)
    found = x.clone().movedim(axis, 0)
    for stretch in range(stretches):
        at = 2 * stretch * pairs
        first, other = found[at : at + count], found[at + pairs : at + pairs + count]
        first.copy_(first + other if hidden in READ else first * (1 - second) + other * second)
        other.zero_()
    return found.movedim(0, axis).contiguous()

"""NuSLERP: spherical interpolation by weights, of whole tensors, of rows or of columns, or of task vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merge.methods.parameters import WEIGHT, only_active, sum_of
from evomerge.merge.methods.registry import Context, Values, merge_method
from evomerge.merge.methods.rows import blocks, grams, one_vector, row_factors, vectors
from evomerge.merge.methods.sphere import ZERO, Array, arc, arrays_of, finite, finite_gram
from evomerge.merge.mixes.mix import Mix, Statistics, weighted
from evomerge.recipes.method_spec import ParameterSpec

_STRAIGHT = 1e-6  # squared sine: within a thousandth of a radian of collinear or opposite


def _share(weights: Sequence[float]) -> float:
    """Where between the first model (0) and the second (1)."""
    sum_of(tuple(weights))
    return float(weights[1] / (weights[0] + weights[1]))


def _check(values: Values) -> None:
    sum_of(tuple(values["weight"]))


def _factors(gram: Array, t: float) -> tuple[Array, Array]:
    """Factors on two vectors from their inner products, of shape ``(2, 2, ...)``.

    A zero vector is at right angles to every other.
    """
    xp = arrays_of(gram)
    norms = xp.sqrt(gram[0, 0]), xp.sqrt(gram[1, 1])
    directed = xp.minimum(norms[0], norms[1]) > ZERO
    cosine: Array = xp.where(directed, gram[0, 1] / xp.where(directed, norms[0] * norms[1], 1.0), 0.0)
    return arc(cosine, t, _STRAIGHT)


def _mix(values: Values, statistics: Statistics) -> Mix | None:
    along = 0 if values["nuslerp_row_wise"] else -1
    if not values["nuslerp_flatten"] and not one_vector(statistics.shape, along):
        return None
    gram = finite_gram(statistics, statistics.has_base)
    first, second = _factors(gram, _share(values["weight"]))
    return weighted((float(first), float(second)), differences=statistics.has_base)


@merge_method(
    "nuslerp",
    WEIGHT,
    ParameterSpec("nuslerp_flatten", True, kind="boolean", summary="each tensor is one vector"),
    ParameterSpec(
        "nuslerp_row_wise",
        False,
        kind="boolean",
        summary="without nuslerp_flatten: vectors lie along a tensor's first dimension, else along its last",
    ),
    summary="spherical interpolation of two models, or of their task vectors, by weight",
    family="spheres",
    base="optional",
    idempotent=True,
    min_inputs=2,
    max_inputs=2,
    mix=_mix,
    check=_check,
    unchanged=lambda values: only_active(values["weight"]),
)
def nuslerp(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    weight: Sequence[float],
    nuslerp_flatten: bool,
    nuslerp_row_wise: bool,
    context: Context,
) -> torch.Tensor:
    """``[sin((1-t) O) a + sin(t O) b] / sin O`` (Shoemake, 1985) at ``t = w_2 / (w_1 + w_2)``, vector by vector.

    mergekit's method of this name, without a paper. For two models, as `slerp`, where their rows or columns should be
    turned one by one, or, with a base, their task vectors. As in mergekit, a zero vector is at right angles to every
    other, and the names of its parameters are kept with what they do there.
    """
    t, along = _share(weight), 0 if nuslerp_row_wise else -1
    result = torch.empty_like(inputs[0], memory_format=torch.contiguous_format)
    a, b, out = (vectors(x.contiguous(), along) for x in (*inputs, result))
    origin = vectors(base.contiguous(), along) if base is not None else None
    for part in blocks(out):
        u, v = a[part], b[part]
        if origin is not None:
            u, v = u - origin[part], v - origin[part]
        first, second = map(row_factors, _factors(finite(grams((u, v))), t))
        mixed = (u * first).add_(v * second)
        out[part] = mixed.add_(origin[part]) if origin is not None else mixed
    return result

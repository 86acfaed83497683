"""Means on the sphere: Karcher's, and one step towards it from the normalised mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.merge.methods.parameters import READING, WEIGHT, only_active, sum_of
from evomerge.merge.methods.registry import Values, mix_method
from evomerge.merge.methods.sphere import ZERO, Floats, Sphere, finite_gram
from evomerge.merge.mixes.mix import Mix, Statistics, weighted
from evomerge.recipes.method_spec import ParameterSpec


def _check_karcher(values: Values) -> None:
    sum_of(tuple(values["weight"]))


def _check_multislerp(values: Values) -> None:
    if values["normalize_weights"]:
        sum_of(tuple(values["weight"]))


def _unchanged_multislerp(values: Values) -> int | None:
    index = only_active(values["weight"])
    whole = index is not None and (values["normalize_weights"] or values["weight"][index] == 1)
    return index if whole else None


def _shares(weights: Sequence[float]) -> Floats:
    """Weights divided by their sum."""
    sum_of(tuple(weights))
    given = np.array(weights, dtype=np.float64)
    return np.asarray(given / given.sum())


@mix_method(
    "karcher",
    ParameterSpec("weight", 1.0, per_input=True, minimum=0.0, searched=True, summary="relative to the others"),
    ParameterSpec("max_iter", 10, low=1, high=100, kind="integer", minimum=0, summary="iterations at most"),
    ParameterSpec("tol", 1e-5, low=1e-9, high=1e-3, minimum=0.0, summary="a shorter step is the last"),
    summary="Riemannian mean of the models' directions, with their mean norm (arXiv 2603.04972)",
    family="spheres",
    idempotent=True,
    check=_check_karcher,
    unchanged=lambda values: only_active(values["weight"]),
)
def karcher(values: Values, statistics: Statistics) -> Mix:
    """The point of the sphere with the least weighted sum of squared angles to the inputs (Karcher, 1977).

    Starting from the normalised mean, ``T = sum w_i phi_i / sin phi_i (u_i - cos phi_i u)`` and ``u <- cos|T| u +
    sin|T| T/|T|`` until ``|T| < tol`` (Buss and Fillmore, 2001, algorithm A1), times ``sum w_i ||theta_i||``.

    For models whose directions differ so much that a plain mean would be short. A zero tensor counts for the norm only.
    Where directions cancel or are opposite to the mean there is no such point; the result then is the weighted average,
    as it is for one-element tensors.
    """
    shares = _shares(values["weight"])
    sphere = Sphere(finite_gram(statistics))
    weights = np.where(sphere.directed, shares, 0.0)
    weights = weights / weights.sum() if weights.any() else weights
    point = sphere.mean(weights)
    if point is None:
        return weighted(list(shares))
    for _ in range(int(values["max_iter"])):
        tangent = sphere.tangent(point, weights)
        if tangent is None:
            return weighted(list(shares))
        if sphere.length(tangent) < values["tol"]:
            break
        point = sphere.step(point, tangent)
    return weighted(sphere.factors(point, float(shares @ sphere.norms)))


@mix_method(
    "multislerp",
    WEIGHT,
    ParameterSpec("normalize_weights", True, kind="boolean"),
    ParameterSpec("eps", ZERO, low=0.0, high=1e-6, minimum=0.0, summary="a tensor of this norm or less is zero"),
    READING,
    summary="interpolation of any number of models on the sphere, through the tangent space at their mean",
    family="spheres",
    base="optional",
    idempotent="normalize_weights",
    check=_check_multislerp,
    unchanged=_unchanged_multislerp,
)
def multislerp(values: Values, statistics: Statistics) -> Mix:
    """``exp_p(sum w_i log_p(u_i)) * sum w_i ||theta_i||`` at ``p``, the normalised weighted mean of the directions.

    One step of what `karcher` iterates; mergekit's method of this name, without a paper. For any number of models as
    `slerp` is for two. With a base, of task vectors. mergekit projects the directions onto the tangent space instead of
    taking their logarithms; the weighted sum of these projections is zero, so that its result is the mean itself:
    ``reading: mergekit`` gives that. Zero tensors and opposite directions as for `karcher`.
    """
    differences = statistics.has_base
    weights = _shares(values["weight"]) if values["normalize_weights"] else np.array(values["weight"], dtype=np.float64)
    sphere = Sphere(finite_gram(statistics, differences), values["eps"])
    average = weighted(list(weights), differences=differences)
    point = sphere.mean(weights)
    if point is None:
        return average
    if values["reading"] == "paper":
        tangent = sphere.tangent(point, weights)
        if tangent is None:
            return average
        point = sphere.step(point, tangent)
    return weighted(sphere.factors(point, float(weights @ sphere.norms)), differences=differences)

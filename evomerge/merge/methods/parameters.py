"""Parameters that several methods declare, and what their values mean."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evomerge.errors import InfeasibleError
from evomerge.merge.methods.registry import BASE, Values
from evomerge.recipes.method_spec import ParameterSpec

WEIGHT = ParameterSpec("weight", 1.0, low=0.0, high=1.0, per_input=True, searched=True, summary="how much it counts")
CHOSEN_WEIGHT = replace(WEIGHT, high=1.5, initial=1.0)
"""Of methods that take every element from one task vector, or from a mean of some: weights of 1 make no long sum."""
DENSITY = ParameterSpec(
    "density",
    1.0,
    low=0.1,
    high=1.0,
    per_input=True,
    minimum=0.0,
    maximum=1.0,
    searched=True,
    summary="share of its elements that is kept",
)
LAMBDA = ParameterSpec("lambda", 1.0, low=0.0, high=2.0, summary="factor on the sum of differences")
NORMALIZE = ParameterSpec("normalize", True, kind="boolean", summary="divide by the sum of the weights")
NO_NORMALIZE = replace(NORMALIZE, default=False)
RESCALE = ParameterSpec("rescale", True, kind="boolean", summary="make up for the elements dropped")
NO_RESCALE = ParameterSpec("rescale", False, kind="boolean", summary="restore the sum of magnitudes after the trim")
RESCALE_BY = ParameterSpec(
    "rescale_by",
    "probability",
    kind="categorical",
    choices=("probability", "magnitude"),
    summary="divide by the probability of staying (paper), or restore the sum of magnitudes (mergekit)",
)
SCOPE = ParameterSpec(
    "scope",
    "tensor",
    kind="categorical",
    choices=("tensor", "layer", "model"),
    summary="over what magnitudes are ranked: each tensor, all of its layer, or the whole model",
)
READING = ParameterSpec(
    "reading",
    "paper",
    kind="categorical",
    choices=("paper", "mergekit"),
    summary="where mergekit computes something else than what was published: whose formula to follow",
)


@functools.lru_cache(maxsize=256)  # asked once per tensor, the same for all tensors of a slice
def sum_of(weights: tuple[float, ...], optional: bool = False) -> float:
    """The sum of weights that are to be normalised, as float32 arithmetic gives it.

    Args:
        weights: of the inputs.
        optional: whether it is the method's ``normalize`` that asks for it, rather than the method itself.

    Raises:
        InfeasibleError: it is zero.
    """
    total = float(np.sum(np.array(weights, dtype=np.float32)))
    if abs(total) <= 1e-6 * math.fsum(abs(weight) for weight in weights):
        raise InfeasibleError(
            f"weights {', '.join(f'{weight:g}' for weight in weights)} sum to {math.fsum(weights):g}",
            "a sum other than zero where normalize is true" if optional else "a sum other than zero",
            "set normalize to false or change the weights" if optional else "change the weights",
        )
    return total


def divisor(values: Values) -> float:
    """What a weighted sum is divided by: the sum of weights when ``normalize`` is set, else 1.

    Raises:
        InfeasibleError: the weights to normalise sum to zero.
    """
    return sum_of(tuple(values["weight"]), optional=True) if values["normalize"] else 1.0


def check_normalisable(values: Values) -> None:
    """Raise `InfeasibleError` when a method's ``weight`` values are to be normalised and sum to zero."""
    divisor(values)


def active(weights: Sequence[float]) -> list[int]:
    """The indices of the weights that are not zero: of the inputs that count."""
    return [i for i, weight in enumerate(weights) if weight != 0]


def only_active(weights: Sequence[float]) -> int | None:
    """The index of the only weight that is not zero; ``None`` when there are more or none."""
    found = active(weights)
    return found[0] if len(found) == 1 else None


def unchanged_task(values: Values) -> int | None:
    """Methods of task vectors: one input kept whole with a factor of one is itself; none is the base.

    Of ``normalize`` and ``density`` methods may have none.
    """
    index = only_active(values["weight"])
    if index is None:
        none = not any(values["weight"]) and not values.get("normalize", False)
        return BASE if none or values["lambda_"] == 0 else None
    factor = values["lambda_"] * (1 if values.get("normalize", False) else values["weight"][index])
    whole = "density" not in values or values["density"][index] >= 1
    return index if whole and factor == 1 else None

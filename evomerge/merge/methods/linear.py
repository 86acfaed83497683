"""Weighted sums of models, and of task vectors."""

from __future__ import annotations

from evomerge.merge.methods.parameters import (
    LAMBDA,
    NO_NORMALIZE,
    NORMALIZE,
    WEIGHT,
    check_normalisable,
    divisor,
    only_active,
    unchanged_task,
)
from evomerge.merge.methods.registry import Values, mix_method
from evomerge.merge.mixes.mix import Mix, Statistics, weighted


def _unchanged(values: Values) -> int | None:
    index = only_active(values["weight"])
    return index if index is not None and (values["normalize"] or values["weight"][index] == 1) else None


@mix_method(
    "linear",
    WEIGHT,
    NORMALIZE,
    summary="weighted sum of the models (model soups, arXiv 2203.05482)",
    family="means",
    idempotent="normalize",
    check=check_normalisable,
    unchanged=_unchanged,
)
def linear(values: Values, statistics: Statistics) -> Mix:
    """``sum w_i theta_i``, divided by the sum of weights when ``normalize`` is set.

    For models of one task, from runs or checkpoints of one training; and where there is no base.
    """
    return weighted(values["weight"], divisor=divisor(values))


@mix_method(
    "task_arithmetic",
    WEIGHT,
    LAMBDA,
    NO_NORMALIZE,
    summary="base plus a weighted sum of task vectors (arXiv 2212.04089)",
    family="task_vectors",
    base="required",
    idempotent=True,
    check=check_normalisable,
    unchanged=unchanged_task,
)
def task_arithmetic(values: Values, statistics: Statistics) -> Mix:
    """``theta_0 + lambda sum w_i (theta_i - theta_0)``, the sum divided by that of the weights for ``normalize``.

    For models of different tasks on one base, and the first to try: it costs least, and what is searched are the
    weights alone. A negative weight takes away what a model has learnt.
    """
    return weighted(values["weight"], differences=True, divisor=divisor(values), scale=values["lambda_"])

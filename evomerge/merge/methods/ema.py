"""An exponential moving average over a series of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.merge.methods.parameters import active, only_active, sum_of
from evomerge.merge.methods.registry import Values, mix_method
from evomerge.merge.mixes.mix import Mix, Statistics, weighted
from evomerge.recipes.method_spec import ParameterSpec


def _shares(values: Values) -> Sequence[float]:
    """What every input counts: the sum is one.

    Raises:
        InfeasibleError: no input has a weight.
    """
    weights, rate = values["weight"], float(values["rate"])
    sum_of(tuple(weights))
    series = active(weights)
    shares = [0.0] * len(weights)
    for age, i in enumerate(reversed(series)):
        joined = 1.0 if values["unbiased"] or i == series[0] else 1.0 - rate
        shares[i] = weights[i] * joined * rate**age
    total = sum(shares)
    return [share / total for share in shares]


def _check(values: Values) -> None:
    sum_of(tuple(values["weight"]))


@mix_method(
    "ema",
    ParameterSpec("weight", 1.0, per_input=True, minimum=0.0, summary="relative to the others; 0 is not of the series"),
    ParameterSpec(
        "rate",
        0.5,
        low=0.0,
        high=1.0,
        minimum=0.0,
        maximum=1.0,
        searched=True,
        summary="what is left of the average at each further input",
    ),
    ParameterSpec(
        "unbiased",
        False,
        kind="boolean",
        summary="the first input counts as the others do, so that a rate of 1 is their mean",
    ),
    summary="exponential moving average of the inputs, a series of checkpoints in order",
    family="means",
    idempotent=True,
    check=_check,
    unchanged=lambda values: only_active(_shares(values)),
)
def ema(values: Values, statistics: Statistics) -> Mix:
    """``e_1 = theta_1``, ``e_t = r e_{t-1} + (1 - r) theta_t``: shares ``(1 - r) r^{T-t}``, of the first ``r^{T-1}``.

    The inputs are checkpoints of one training in the order of the recipe, which in a search is that of the pool's
    sources, the latest last: a rate ``r`` of 0 is the latest, of 1 the first. ``unbiased`` takes ``r^{T-t}`` over the
    sum of them, by which Adam corrects its averages (arXiv 1412.6980, section 3): a rate of 1 is the mean. It has one
    gene where a weighted sum has one for every checkpoint. For a training whose last steps wander about a minimum.

    Shares are times the weights, and divided by their sum: what is known of each checkpoint, such as a metric, can be
    fixed or searched there.
    """
    return weighted(_shares(values))

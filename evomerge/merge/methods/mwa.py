"""Means of checkpoints by what each of them scored."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.errors import InfeasibleError
from evomerge.merge.methods.parameters import active, only_active, sum_of
from evomerge.merge.methods.registry import Values, mix_method
from evomerge.merge.mixes.mix import Mix, Statistics, weighted
from evomerge.recipes.method_spec import ParameterSpec


def _shares(values: Values) -> Sequence[float]:
    """What every input counts: the sum is one.

    Raises:
        InfeasibleError: no input has a weight, or one that has has a metric of 0 or below.
    """
    weights, metrics, penalty = values["weight"], values["metric"], float(values["penalty"])
    sum_of(tuple(weights))
    used = active(weights)
    if any(metrics[i] <= 0 for i in used):
        raise InfeasibleError("metrics of 0 have no powers; give metrics above 0, or a weight of 0")
    # Shares are of the largest: a power of a metric alone may be beyond what a float holds.
    powers = {i: penalty * math.log(metrics[i]) for i in used}
    largest = max(powers.values())
    shares = [weights[i] * math.exp(powers[i] - largest) if i in powers else 0.0 for i in range(len(weights))]
    total = sum(shares)
    return [share / total for share in shares]


def _check(values: Values) -> None:
    _shares(values)


@mix_method(
    "mwa",
    ParameterSpec("weight", 1.0, per_input=True, minimum=0.0, summary="relative to the others; 0 leaves an input out"),
    ParameterSpec("metric", 1.0, per_input=True, minimum=0.0, summary="what each input scored, above 0"),
    ParameterSpec(
        "penalty",
        1.0,
        low=-8.0,
        high=8.0,
        searched=True,
        summary="power of the metric: above 0 where more is better, below where less is, as of a loss",
    ),
    summary="mean of checkpoints, weighted by a power of what each scored (MWA, arXiv 2504.18580)",
    family="means",
    idempotent=True,
    check=_check,
    unchanged=lambda values: only_active(_shares(values)),
)
def mwa(values: Values, statistics: Statistics) -> Mix:
    """``sum_i s_i theta_i`` with ``s_i`` in proportion to ``w_i m_i^p``: metrics-weighted averaging.

    ``m_i`` is what checkpoint ``i`` scored on items of its own, or the number of its step, and ``p`` the one penalty
    that is searched: 0 is the mean, and the larger its magnitude, the more the best count. It is meant for checkpoints
    of one training, or of several from one start, whose quality is known and differs, and has one gene where a
    weighted sum has one for each. The paper's exact form of the power is not public: this is what metric and step,
    rising and falling, have in common.

    Metrics are given with the inputs of a recipe, and in a search by source, ``search_space.parameters={metric: {math:
    0.61, lang: 0.64}}``: where all are alike, as they are by default, the penalty means nothing. They should not come
    from held-out items.
    """
    return weighted(_shares(values))

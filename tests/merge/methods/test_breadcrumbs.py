from __future__ import annotations

import pytest
import torch
from merge.carry_out import carry_out, merged, weights
from merge.mergekits import assert_same, by_mergekit, fine_tunes

from evomerge.errors import InfeasibleError
from evomerge.recipes.method_spec import Scalar

TASK = [5.0, -4.0, 3.0, 2.0, -1.0]
BASE = [1.0, 1.0, 1.0, 1.0, 1.0]
TUNED = [6.0, -3.0, 4.0, 3.0, 0.0]


def crumbs(density: float, gamma: float, **shared: Scalar) -> list[float]:
    """What is left of `TASK`."""
    result = merged("breadcrumbs", [TUNED], BASE, [{"density": density, "gamma": gamma}], **shared)
    return [x - 1 for x in result]


def test_outliers_and_small_perturbations_are_dropped() -> None:
    assert crumbs(0.4, 0.2) == [0, -4, 3, 0, 0]
    assert crumbs(0.6, 0.4) == [0, 0, 3, 2, -1]
    assert crumbs(0.2, 0.6) == [0, 0, 0, 2, 0]


def test_a_share_of_less_than_one_element_is_none() -> None:
    assert crumbs(0.4, 0.19) == [5, -4, 0, 0, 0]
    assert crumbs(0.6, 0.0) == [5, -4, 3, 0, 0]
    assert crumbs(0.19, 0.2) == [0, 0, 0, 0, 0]


def test_outliers_stay_where_the_density_needs_them() -> None:
    assert crumbs(0.8, 0.6) == [0, -4, 3, 2, -1]
    assert crumbs(1.0, 0.6) == TASK


def test_equal_magnitudes_count_as_falling() -> None:
    tuned = [2.0, 0.0, 2.0, 0.0]  # +1, -1, +1, -1
    result = merged("breadcrumbs", [tuned], [1.0] * 4, [{"density": 0.5, "gamma": 0.25}])
    assert result == [1, 0, 2, 1]


def test_rescale_restores_the_sum_of_magnitudes() -> None:
    factor = 15 / 7
    assert crumbs(0.4, 0.2, rescale=True) == pytest.approx([0, -4 * factor, 3 * factor, 0, 0])


def test_sum_and_mean() -> None:
    each: list[dict[str, Scalar]] = [
        {"weight": 0.5, "density": 0.4, "gamma": 0.2},
        {"weight": 2.0, "density": 0.2, "gamma": 0.0},
    ]
    other = [1.0, 1.0, 1.0, 1.0, 9.0]
    assert merged("breadcrumbs", [TUNED, other], BASE, each) == [1, -1, 2.5, 1, 17]
    assert merged("breadcrumbs", [TUNED, other], BASE, each, lambda_=0.5) == [1, 0, 1.75, 1, 9]
    normalized = merged("breadcrumbs", [TUNED, other], BASE, each, normalize=True)
    assert normalized == pytest.approx([1, 1 - 2 / 2.5, 1 + 1.5 / 2.5, 1, 1 + 16 / 2.5])
    with pytest.raises(InfeasibleError, match="sum to 0"):
        merged("breadcrumbs", [TUNED, other], BASE, weights(1, -1), normalize=True)


def test_ties_elects_among_what_is_left() -> None:
    each: list[dict[str, Scalar]] = [{"density": 0.4, "gamma": 0.2}, {"density": 0.4, "gamma": 0.0}]
    other = [1.0, 4.0, 3.0, 1.0, 1.0]  # +3 and +2 are left
    # The first has -4 and 3 left: signs differ in the second element, where the first is larger.
    assert merged("breadcrumbs_ties", [TUNED, other], BASE, each) == [1, -3, 6, 1, 1]
    assert merged("breadcrumbs_ties", [TUNED, other], BASE, each, normalize=True) == [1, -3, 3.5, 1, 1]


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.01), (0.3, 0.2), (0.9, 0.4), (0.7, 0.0), (1.0, 0.3), (0.05, 1)])
@pytest.mark.parametrize("rescale", [False, True])
def test_same_as_mergekit(method: str, density: float, gamma: float, rescale: bool) -> None:
    base, inputs = fine_tunes()
    each: list[dict[str, Scalar]] = [
        {"weight": 0.5, "density": density, "gamma": gamma},
        {"weight": 0.9, "density": 0.77, "gamma": 0.11},
        {"weight": -0.3, "density": 0.61, "gamma": 0.03},
    ]
    for normalize in (False, True):
        shared: dict[str, Scalar] = {"rescale": rescale, "normalize": normalize, "lambda": 1.3}
        theirs = by_mergekit(method, inputs, base, each, shared)
        assert_same(carry_out(method, inputs, base, each, shared), theirs)
        assert float((theirs - base).abs().max()) > 1e-3


def test_defaults_are_mergekits() -> None:
    base, inputs = fine_tunes()
    each: list[dict[str, Scalar]] = [{"weight": 1.0, "density": 0.5}] * 3
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        assert_same(carry_out(method, inputs, base, each), by_mergekit(method, inputs, base, each))


def test_a_task_vector_of_zeros() -> None:
    zero = torch.zeros(7)
    for rescale in (False, True):
        for method in ("breadcrumbs", "breadcrumbs_ties"):
            result = carry_out(method, [zero, zero], zero, [{"density": 0.5}] * 2, {"rescale": rescale})
            assert torch.equal(result, zero)

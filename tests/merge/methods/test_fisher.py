from __future__ import annotations

import pytest
import torch

from evomerge.errors import InfeasibleError
from evomerge.merge.methods import METHODS, Context, call_values
from evomerge.models.statistics import Statistic

ONE, OTHER = [1.0, 2.0, 3.0], [3.0, 2.0, 7.0]
NO_FLOOR = -30.0


def merged(
    squares: list[list[float] | None],
    inputs: tuple[list[float], ...] = (ONE, OTHER),
    weight: tuple[float, ...] = (1.0, 1.0),
    means: tuple[float, ...] = (1.0, 1.0),
    **shared: float | bool,
) -> list[float]:
    method = METHODS["fisher"]
    values = call_values(method.spec, [{"weight": w} for w in weight], shared)
    known = tuple(
        Statistic(torch.tensor(own), mean=mean) if own is not None else None
        for own, mean in zip(squares, means, strict=True)
    )
    assert method.function is not None
    tensors = [torch.tensor(x) for x in inputs]
    return method.function(tensors, None, context=Context(0, (), statistics=known), **values).tolist()


def test_by_hand() -> None:
    # Equal squares: the mean; none: the mean; three to one: (3*3 + 1*7) / 4.
    assert merged([[1, 0, 3], [1, 0, 1]], log_floor=NO_FLOOR) == pytest.approx([2, 2, 4])
    # Weights 1 and 3: (1 + 9)/4, the same, (3*3 + 3*7)/6.
    assert merged([[1, 0, 3], [1, 0, 1]], weight=(1, 3), log_floor=NO_FLOOR) == pytest.approx([2.5, 2, 5])
    # Only one has a gradient: that one's value.
    assert merged([[1, 1, 0], [0, 1, 5]], log_floor=NO_FLOOR) == pytest.approx([1, 2, 7])
    # Squared: nine to one.
    assert merged([[1, 0, 3], [1, 0, 1]], power=2, log_floor=NO_FLOOR)[2] == pytest.approx(3.4)


def test_power_zero_and_a_high_floor_are_the_mean() -> None:
    assert merged([[1, 0, 3], [1, 0, 1]], power=0) == pytest.approx([2, 2, 5])
    assert merged([[1, 0, 3], [1, 0, 1]], log_floor=8) == pytest.approx([2, 2, 5])


def test_the_floor_is_in_units_of_the_mean_over_the_model() -> None:
    # (3/2 + 1, 1/2 + 1): 2.5 to 1.5.
    found = merged([[0, 0, 3], [0, 0, 1]], means=(2, 2), log_floor=0)
    assert found[2] == pytest.approx((2.5 * 3 + 1.5 * 7) / 4)


def test_a_model_with_steep_likelihood_counts_no_more_unless_it_is_asked_for() -> None:
    steep, flat = [100.0, 100.0, 100.0], [1.0, 1.0, 1.0]
    assert merged([steep, flat], means=(100, 1), log_floor=NO_FLOOR) == pytest.approx([2, 2, 5])
    found = merged([steep, flat], means=(100, 1), log_floor=NO_FLOOR, normalize=False)
    assert found == pytest.approx([(100 + 3) / 101, 2, (300 + 7) / 101])


def test_squares_far_below_float32_still_count() -> None:
    tiny = 1e-38
    found = merged([[tiny] * 3, [3 * tiny] * 3], means=(tiny, tiny), log_floor=NO_FLOOR)
    assert found == pytest.approx([2.5, 2, 6], rel=1e-4)


def test_a_tensor_without_statistics_is_the_mean() -> None:
    assert merged([None, [1, 2, 3]], weight=(1, 3)) == pytest.approx([2.5, 2, 6])


def test_weights_that_are_all_zero_are_refused() -> None:
    method = METHODS["fisher"]
    assert method.check is not None
    with pytest.raises(InfeasibleError, match="every weight is 0"):
        method.check(call_values(method.spec, [{"weight": 0.0}, {"weight": 0.0}], {}))

from __future__ import annotations

import pytest
from merge.carry_out import merged, weights

from evomerge.errors import InfeasibleError
from evomerge.merge.methods import BASE, METHODS, call_values
from evomerge.recipes.method_spec import Scalar

A, B = [1.0, 2.0, -4.0], [3.0, 6.0, 8.0]


def test_weighted_mean() -> None:
    assert merged("linear", [A, B]) == [2.0, 4.0, 2.0]
    assert merged("linear", [A, B], each=weights(1, 3)) == [2.5, 5.0, 5.0]
    assert merged("linear", [A, B], each=weights(2, -1)) == [-1.0, -2.0, -16.0]


def test_weighted_sum() -> None:
    assert merged("linear", [A, B], each=weights(1, 3), normalize=False) == [10.0, 20.0, 20.0]
    assert merged("linear", [A, B], each=weights(0, 0), normalize=False) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "dare_linear"])
@pytest.mark.parametrize("numbers", [(1.0, -1.0), (0.0, 0.0), (0.1, 0.2, -0.3)])
def test_weights_that_cannot_be_normalised(method: str, numbers: tuple[float, ...]) -> None:
    with pytest.raises(InfeasibleError, match=r"sum to .* where normalize is true"):
        merged(method, [[1.0, 2.0]] * len(numbers), [0.0, 0.0], weights(*numbers), normalize=True)


def test_small_weights_are_normalised() -> None:
    assert merged("linear", [[1.0], [5.0]], each=weights(1e-12, 3e-12)) == pytest.approx([4.0])


def test_task_arithmetic() -> None:
    base, a, b = [1.0, 1.0], [2.0, 0.0], [1.0, 5.0]
    assert merged("task_arithmetic", [a, b], base) == [2.0, 4.0]
    assert merged("task_arithmetic", [a, b], base, weights(0.5, 0.25)) == [1.5, 1.5]
    assert merged("task_arithmetic", [a, b], base, weights(0.5, 0.25), lambda_=2.0) == [2.0, 2.0]
    assert merged("task_arithmetic", [a, b], base, weights(1, 3), normalize=True) == [1.25, 3.75]
    assert merged("task_arithmetic", [a, b], base, weights(-1, 0)) == [0.0, 2.0]


@pytest.mark.parametrize(
    ("name", "each", "shared", "expected"),
    [
        ("linear", weights(0, 2), {}, 1),
        ("linear", weights(0, 2), {"normalize": False}, None),
        ("linear", weights(0, 1), {"normalize": False}, 1),
        ("linear", weights(0.5, 0.5), {}, None),
        ("task_arithmetic", weights(0, 0), {}, BASE),
        ("task_arithmetic", weights(1, 1), {"lambda": 0.0}, BASE),
        ("task_arithmetic", weights(1, 0), {}, 0),
        ("task_arithmetic", weights(0.5, 0), {"lambda": 2.0}, 0),
        ("task_arithmetic", weights(0.5, 0), {}, None),
        ("ties", [{"weight": 0.3}, {"weight": 0.0}], {}, 0),
        ("ties", [{"density": 0.5}, {"weight": 0.0}], {}, None),
        ("dare_ties", [{"weight": 1.0}, {"weight": 0.0}], {}, 0),
        ("dare_linear", [{"weight": 1.0, "density": 0.5}, {"weight": 0.0}], {}, None),
        ("slerp", [{}, {}], {"t": 0.0}, 0),
        ("slerp", [{}, {}], {"t": 1.0}, 1),
        ("slerp", [{}, {}], {}, None),
        ("nuslerp", weights(0, 0.2), {}, 1),
        ("nuslerp", weights(-2, 0), {}, 0),
        ("nuslerp", weights(1, 1), {}, None),
        ("multislerp", weights(0, 0.2), {}, 1),
        ("multislerp", weights(0, 0.2), {"normalize_weights": False}, None),
        ("karcher", weights(0, 0.2, 0), {}, 1),
        ("karcher", weights(1, 1, 1), {}, None),
        ("passthrough", [{}], {}, 0),
        ("passthrough", [{"scale": 0.5}], {}, None),
        ("nearswap", [{}], {"t": 0.0}, BASE),
        ("nearswap", [{}], {"t": 0.1}, None),
    ],
)
def test_results_that_equal_an_input(
    name: str, each: list[dict[str, Scalar]], shared: dict[str, Scalar], expected: int | None
) -> None:
    method = METHODS[name]
    assert method.unchanged is not None
    assert method.unchanged(call_values(method.spec, each, shared)) == expected

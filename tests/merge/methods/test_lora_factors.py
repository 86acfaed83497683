from __future__ import annotations

from typing import Any

import pytest
import torch

from evomerge.merge.methods import METHODS
from evomerge.merge.methods.lora_factors import joined, lora_factors, top

ONE = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 1.0], [0.0, 4.0]])
OTHER = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [5.0, 1.0]])
WHOLE: dict[str, Any] = {"density": (1.0, 1.0), "cross": True}


def test_sums_of_factors_are_multiplied() -> None:
    # B = 0.5 B1 - B2 = [[0.5, -1], [-1, 1]], A = 0.5 A1 - A2 = [[-0.5, 0.5], [-5, 1]].
    b, a = joined([ONE, OTHER], (0.5, -1.0), **WHOLE)
    assert b.tolist() == [[0.5, -1.0], [-1.0, 1.0]]
    assert a.tolist() == [[-0.5, 0.5], [-5.0, 1.0]]
    found = lora_factors([ONE, OTHER], (0.5, -1.0), **WHOLE)
    assert found.tolist() == [[4.75, -0.75], [-4.5, 0.5]]


def test_products_stay_apart_without_cross_terms() -> None:
    b, a = joined([ONE, OTHER], (0.5, -1.0), density=(1.0, 1.0), cross=False)
    assert (b.shape, a.shape) == ((2, 4), (4, 2))
    expected = 0.5 * (ONE[0] @ ONE[1]) - OTHER[0] @ OTHER[1]
    assert torch.equal(b @ a, expected)
    # The sign of the weight of an adapter alone: lost in the square with cross terms, kept without.
    alone = lora_factors([ONE, OTHER], (-0.5, 0.0), **WHOLE)
    assert torch.equal(alone, 0.25 * (ONE[0] @ ONE[1]))
    alone = lora_factors([ONE, OTHER], (-0.5, 0.0), density=(1.0, 1.0), cross=False)
    assert torch.equal(alone, -0.5 * (ONE[0] @ ONE[1]))


def test_only_the_first_factor_is_trimmed() -> None:
    # Half of A1's four elements: 4 and 3. A2 goes, its B stays.
    b, a = joined([ONE, OTHER], (1.0, 1.0), density=(0.5, 0.0), cross=True)
    assert b.tolist() == (ONE[0] + OTHER[0]).tolist()
    assert a.tolist() == [[3.0, 0.0], [0.0, 4.0]]


def test_of_equal_magnitudes_the_first_are_kept() -> None:
    matrix = torch.tensor([[[1.0, -1.0, 1.0], [2.0, -1.0, 0.0]]])
    assert top(matrix, [0.5]).tolist() == [[[1.0, -1.0, 0.0], [2.0, 0.0, 0.0]]]
    assert top(matrix, [0.99]).tolist() == matrix.tolist()  # five of six: the zero goes
    assert top(matrix.repeat(2, 1, 1), [0.0, 1.0]).tolist() == [torch.zeros(2, 3).tolist(), matrix[0].tolist()]


def test_smaller_ranks_are_filled_with_zeros() -> None:
    small = torch.tensor([[1.0], [1.0]]), torch.tensor([[10.0, 20.0]])
    none = torch.zeros(2, 0), torch.zeros(0, 2)
    for parts in ([ONE, small, none], [none, small, ONE]):
        b, a = joined(parts, (1.0, 1.0, 1.0), density=(1.0,) * 3, cross=True)
        assert b.tolist() == [[2.0, 0.0], [1.0, 2.0]]
        assert a.tolist() == [[13.0, 21.0], [0.0, 4.0]]
    b, a = joined([none, none], (1.0, 1.0), **WHOLE)
    assert (b @ a).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_inputs_are_not_written_to() -> None:
    before = [factor.clone() for pair in (ONE, OTHER) for factor in pair]
    joined([ONE, OTHER], (0.3, 0.4), density=(0.5, 0.5), cross=True)
    assert all(torch.equal(a, b) for a, b in zip(before, (*ONE, *OTHER), strict=True))


@pytest.mark.parametrize(
    ("weight", "density", "scale", "expected"),
    [((0.0, 1.0), (0.2, 1.0), 1.0, 1), ((0.0, 1.0), (1.0, 0.9), 1.0, None), ((0.0, -1.0), (1.0, 1.0), 1.0, None)],
)
def test_one_adapter_alone_is_itself(weight: Any, density: Any, scale: float, expected: int | None) -> None:
    unchanged = METHODS["lora_factors"].unchanged
    assert unchanged is not None
    assert unchanged({"weight": weight, "density": density, "cross": True, "lambda_": scale}) == expected

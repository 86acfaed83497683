from __future__ import annotations

import math

import pytest
import torch
from merge.carry_out import carry_out, merged, weights
from merge.mergekits import fine_tunes

from evomerge.errors import PoolError
from evomerge.merge.methods import blocks
from evomerge.recipes.method_spec import Scalar

BASE = [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]
A = [[4.0, 1.5, 1.0], [-2.0, 0.0, 1.0], [2.0, 2.0, 2.5]]  # +3 +0.5 0 | -2 0 +1 | 0 0 +0.5
B = [[1.0, 0.0, 1.0], [4.0, 0.0, 0.5], [2.0, -1.0, 2.0]]  # 0 -1 0 | +4 0 +0.5 | 0 -3 0


def densities(*given: float) -> list[dict[str, Scalar]]:
    return [{"density": density} for density in given]


def test_the_largest_changes_are_averaged_where_they_overlap() -> None:
    # Two of nine: of A the +3 and the -2, of B the +4 and the -3; both have the fourth element.
    expected = [[4, 1, 1], [1, 0, 0], [2, -1, 2]]
    assert merged("localize_and_stitch", [A, B], BASE, densities(0.23, 0.23)) == expected
    # Of A one more, the +1, of B one only.
    expected = [[4, 1, 1], [1, 0, 1], [2, 2, 2]]
    assert merged("localize_and_stitch", [A, B], BASE, densities(0.34, 0.01)) == expected
    assert merged("localize_and_stitch", [A, B], BASE, densities(0.0, 0.0)) == BASE


def test_weights_and_lambda() -> None:
    each: list[dict[str, Scalar]] = [{"density": 0.23}, {"density": 0.23, "weight": 0.5}]
    expected = [[7, 1, 1], [0, 0, 0], [2, -1, 2]]  # -2 and 0.5 times +4 cancel
    assert merged("localize_and_stitch", [A, B], BASE, each, lambda_=2.0) == expected
    # All elements count: a mean.
    mean = [[2.5, 0.75, 1], [1, 0, 0.75], [2, 0.5, 2.25]]
    assert merged("localize_and_stitch", [A, B], BASE, densities(1, 1)) == mean
    # One model alone is grafted onto the base, by default by a twentieth.
    assert merged("localize_and_stitch", [A, B], BASE, weights(0, 1)) == [[1, 1, 1], [4, 0, 0], [2, 2, 2]]


def by_the_authors(inputs: list[torch.Tensor], base: torch.Tensor, density: list[float]) -> torch.Tensor:
    """The rule of the authors' code: masks by a threshold, each divided by itself and the others where they meet."""
    tasks = [x - base for x in inputs]
    masks = []
    for task, share in zip(tasks, density, strict=True):
        threshold = task.abs().view(-1).topk(int(share * task.numel())).values.min()
        masks.append((task.abs() >= threshold).float())
    stitched = [mask / (mask + sum(mask * other for other in masks if other is not mask)) for mask in masks]
    return base + sum(torch.nan_to_num(share) * task for share, task in zip(stitched, tasks, strict=True))


@pytest.mark.parametrize("density", [[0.05, 0.05, 0.05], [0.5, 0.2, 0.9]])
def test_same_as_the_authors_code(density: list[float]) -> None:
    """As in uiuctml/Localize-and-Stitch, with the tensor as the whole model, but for its threshold, which its masks
    leave out: one element fewer than it counts. fusion_bench 0.2.33 does not have the method."""
    base, inputs = fine_tunes()
    result = carry_out("localize_and_stitch", inputs, base, densities(*density))
    torch.testing.assert_close(result, by_the_authors(inputs, base, density), rtol=1e-6, atol=1e-7)


def test_same_for_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    base, inputs = fine_tunes()
    whole = carry_out("localize_and_stitch", inputs, base)
    monkeypatch.setattr(blocks, "_CPU_BLOCK", 100)
    assert torch.equal(carry_out("localize_and_stitch", inputs, base), whole)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    base, inputs = fine_tunes()
    inputs[1][3, 4] = bad
    with pytest.raises(PoolError, match="input 2 has values that are NaN"):
        carry_out("localize_and_stitch", inputs, base)

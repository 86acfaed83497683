from __future__ import annotations

import math

import pytest
import torch
from merge.carry_out import carry_out, merged
from merge.mergekits import assert_same, by_mergekit, fine_tunes

from evomerge.errors import PoolError
from evomerge.merge.methods import blocks
from evomerge.merge.methods.sce import largest
from evomerge.recipes.method_spec import Scalar

BASE = [0.0, 0.0, 0.0, 0.0]
A = [4.0, 1.0, 2.0, 1.0]
B = [-2.0, 1.0, 0.0, 2.0]
# Variances are 9, 0, 1 and 1/4; mean squares 22/4 and 9/4.


def test_everything_selected() -> None:
    # The sum is positive everywhere, so that only B's first is erased; weights are 22/31 and 9/31.
    assert merged("sce", [A, B], BASE) == pytest.approx([4, 1, 2, (22 * 1 + 9 * 2) / 31])


def test_what_differs_most_is_selected() -> None:
    # Three elements differ at all: one of them, then two.
    assert merged("sce", [A, B], BASE, select_topk=0.34) == [4, 0, 0, 0]
    assert merged("sce", [A, B], BASE, select_topk=0.67) == [4, 0, 2, 0]
    assert merged("sce", [A, B], BASE, select_topk=0.33) == BASE
    assert merged("sce", [A, B], BASE, select_topk=0.0) == BASE


def test_weights_are_of_what_is_selected() -> None:
    # Of two elements that differ the first is selected, with squares of 9 and 1.
    assert merged("sce", [[3.0, 1.0, 5.0], [1.0, 2.0, 5.0]], [0.0] * 3, select_topk=0.5) == pytest.approx([2.8, 0, 0])
    # Of three the first two are, the third having the variance of the second; sums of squares are 10 and 5.
    result = merged("sce", [[3.0, 1.0, 5.0, 7.0], [1.0, 2.0, 5.0, 8.0]], [0.0] * 4, select_topk=0.7)
    assert result == pytest.approx([(10 * 3 + 5 * 1) / 15, (10 * 1 + 5 * 2) / 15, 0, 0])


def test_signs_are_elected_without_weights() -> None:
    # The sum of the first element is negative, though the larger model's is positive.
    a, b, c = [2.0, 100.0], [-1.5, 0.0], [-1.5, 0.0]
    result = merged("sce", [a, b, c], [0.0, 0.0])
    assert result == pytest.approx([-1.5, 100])


def test_one_model_alone() -> None:
    base, (x, *_) = fine_tunes()
    assert torch.equal(carry_out("sce", [x], base), x)
    assert torch.equal(carry_out("sce", [x], base, None, {"select_topk": 0.9}), base)


def test_of_equal_values_the_earlier_are_largest() -> None:
    values = torch.tensor([1.0, 3.0, 1.0, 0.0, 1.0, 3.0])
    for count, expected in enumerate([[], [1], [1, 5], [0, 1, 5], [0, 1, 2, 5], [0, 1, 2, 4, 5], [0, 1, 2, 3, 4, 5]]):
        assert torch.nonzero(largest(values, count)).view(-1).tolist() == expected


@pytest.mark.parametrize("topk", [1.0, 0.9, 0.5, 0.1, 0.0])
@pytest.mark.parametrize("size", [0.1, 1e-4])
def test_same_as_mergekit(topk: float, size: float) -> None:
    base, inputs = fine_tunes(size=size)
    inputs[2] = base + 3 * (inputs[2] - base)
    shared: dict[str, Scalar] = {"select_topk": topk}
    ours = carry_out("sce", inputs, base, None, {**shared, "reading": "mergekit"})
    assert_same(ours, by_mergekit("sce", inputs, base, None, shared))


def test_mergekit_weights_small_changes_equally() -> None:
    base = torch.zeros(2)
    a, b = torch.tensor([1e-4, 0.0]), torch.tensor([3e-4, 0.0])
    paper = carry_out("sce", [a, b], base)
    torch.testing.assert_close(paper, torch.tensor([(1 * 1e-4 + 9 * 3e-4) / 10, 0.0]))
    theirs = carry_out("sce", [a, b], base, None, {"reading": "mergekit"})
    torch.testing.assert_close(theirs, torch.tensor([2e-4, 0.0]))
    assert_same(theirs, by_mergekit("sce", [a, b], base))


def test_weights_do_not_depend_on_the_scale_of_changes() -> None:
    base = torch.zeros(40)
    inputs = [torch.randn(40, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    whole = carry_out("sce", inputs, base)
    for scale in (2.0**-30, 2.0**20):
        torch.testing.assert_close(
            carry_out("sce", [x * scale for x in inputs], base), whole * scale, rtol=1e-6, atol=0
        )


def test_same_for_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    base, inputs = fine_tunes()
    monkeypatch.setattr(blocks, "_CPU_BLOCK", 1 << 20)
    whole = [carry_out("sce", inputs, base, None, {"select_topk": topk}) for topk in (1.0, 0.3)]
    monkeypatch.setattr(blocks, "_CPU_BLOCK", 100)
    for topk, expected in zip((1.0, 0.3), whole, strict=True):
        # The weights are of sums over blocks, which may be rounded differently.
        torch.testing.assert_close(
            carry_out("sce", inputs, base, None, {"select_topk": topk}), expected, rtol=0, atol=1e-7
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("topk", [1.0, 0.5])
def test_what_is_not_finite_is_refused(bad: float, topk: float) -> None:
    base, inputs = fine_tunes()
    inputs[1][3, 4] = bad
    with pytest.raises(PoolError, match="input 2 has values that are NaN"):
        carry_out("sce", inputs, base, None, {"select_topk": topk})

from __future__ import annotations

import pytest
import torch
from merge.carry_out import merged, weights

from evomerge.merge.mixes.mix import Cut
from evomerge.merge.mixes.torch_mix import cut_
from evomerge.merge.mixes.torch_statistics import TensorStatistics
from evomerge.recipes.method_spec import Scalar


def test_elects_signs_and_averages_what_agrees() -> None:
    base = [0.0] * 5
    a, b, c = [1.0, 1.0, -1.0, 0.0, 2.0], [3.0, -2.0, 1.0, 0.0, -2.0], [2.0, 4.0, -3.0, 0.0, 0.0]
    # Sums 6, 3, -3, 0, 0: the last is elected positive, where only the first model agrees.
    assert merged("ties", [a, b, c], base) == [2.0, 2.5, -2.0, 0.0, 2.0]
    assert merged("ties", [a, b, c], base, normalize=False) == [6.0, 5.0, -4.0, 0.0, 2.0]
    assert merged("ties", [a, b, c], base, lambda_=0.5) == [1.0, 1.25, -1.0, 0.0, 1.0]
    # Weights 1, 3, 1 turn the second vote to 1 - 6 + 4 < 0 and the last to 2 - 6 < 0.
    assert merged("ties", [a, b, c], base, weights(1, 3, 1)) == pytest.approx([12 / 5, -2.0, -2.0, 0.0, -2.0])


def test_negative_weight() -> None:
    base, a, b = [0.0, 0.0, 0.0], [2.0, 2.0, 1.0], [1.0, -1.0, 3.0]
    # Weighted tasks (2, 2, 1) and (-1, 1, -3): signs +, +, -; agreeing weights 1, 1 - 1 = 0 (read as 1), -1.
    assert merged("ties", [a, b], base, weights(1, -1)) == [2.0, 3.0, 3.0]


def test_trims_to_the_largest() -> None:
    base = [1.0, 1.0, 1.0, 1.0]
    a = [5.0, 1.5, -2.0, 0.0]  # task 4, 0.5, -3, -1
    half: list[dict[str, Scalar]] = [{"density": 0.5}]
    assert merged("ties", [a], base, half) == [5.0, 1.0, -2.0, 1.0]
    assert merged("ties", [a], base, [{"density": 0.2}]) == [5.0, 1.0, 1.0, 1.0]  # at least one element
    assert merged("ties", [a], base, [{"density": 0.0}]) == base
    b = [1.0, 3.0, 1.0, 1.0]
    assert merged("ties", [a, b], base, [{"density": 0.5}, {"density": 0.25}]) == [5.0, 3.0, -2.0, 1.0]
    # What stays of 8.5 is 7.
    restored = merged("ties", [a], base, half, rescale=True)
    assert restored == pytest.approx([1 + 4 * 8.5 / 7, 1.0, 1 - 3 * 8.5 / 7, 1.0])


@pytest.mark.parametrize("offset", [0, 2, 4])
def test_equal_magnitudes_are_kept_from_the_front(offset: int) -> None:
    task = torch.tensor([1.0, -2.0, 2.0, 5.0, -2.0, 2.0])
    cut = TensorStatistics([task], torch.zeros(6), (6,)).cut(0, 0, 3)
    assert cut == Cut(int(torch.tensor(2.0).view(torch.int32)), 3)
    expected = torch.tensor([0.0, -2.0, 2.0, 5.0, 0.0, 0.0])
    block = task[offset:].clone()
    cut_(block, cut, offset)
    assert torch.equal(block, expected[offset:])


def test_nothing_is_cut_when_only_zeros_would_be() -> None:
    zeros = TensorStatistics([torch.tensor([0.0, 3.0, 0.0, -1.0])], torch.zeros(4), (4,))
    assert zeros.cut(0, 0, 3) is None
    assert zeros.cut(0, 0, 2) is not None
    assert zeros.cut(0, 0, 4) is None

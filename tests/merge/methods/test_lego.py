from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from merge.carry_out import diagonal, merged, near

from evomerge.errors import PoolError
from evomerge.merge.methods.lego import joined, lora_lego

ZERO = [[0.0, 0.0, 0.0]] * 3


def pair(*units: tuple[list[float], list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of which each unit is ``(b_j, a_j)``."""
    return torch.tensor([b for b, _ in units]).T, torch.tensor([a for _, a in units])


ONE = pair(([1.0, 0.0, 0.0], [4.0, 0.0, 0.0]), ([0.0, 0.0, 1.0], [0.0, 0.0, 9.0]))
OTHER = pair(([1.0, 0.0, 0.0], [2.0, 0.0, 0.0]), ([0.0, 1.0, 0.0], [0.0, 6.0, 0.0]))
SETTINGS: dict[str, Any] = {"weight": (1.0, 1.0), "rank": 1.5, "norms": False, "output": False}


def test_units_that_are_near_each_other_become_one() -> None:
    # Four units in three clusters: the two along the first axis are nearest, and become (1, 0, 0) with (3, 0, 0).
    b, a = joined([ONE, OTHER], **SETTINGS)
    assert (b.shape, a.shape) == ((3, 3), (3, 3))
    assert (b @ a).tolist() == near(diagonal(3.0, 6.0, 9.0))


def test_centroids_get_the_mean_norm_of_their_units() -> None:
    # The cluster's units (1, 4) and (1, 2) have norms sqrt(17) and sqrt(5), their centroid sqrt(10): both halves grow.
    factor = ((math.sqrt(17) + math.sqrt(5)) / 2) ** 2 / 10
    b, a = joined([ONE, OTHER], **{**SETTINGS, "norms": True})
    assert (b @ a).tolist() == near(diagonal(3.0 * factor, 6.0, 9.0))


def test_more_units_than_an_adapter_has_are_made_smaller() -> None:
    b, a = joined([ONE, OTHER], **{**SETTINGS, "output": True})
    scale = math.sqrt(2 / 3)
    assert (b @ a).tolist() == near(diagonal(3.0 * scale, 6.0 * scale, 9.0 * scale))


def test_enough_units_are_the_sum() -> None:
    both = lora_lego([ONE, OTHER], **{**SETTINGS, "rank": 2.0, "weight": (0.5, -1.0)})
    assert both.tolist() == near((0.5 * (ONE[0] @ ONE[1]) - OTHER[0] @ OTHER[1]).tolist())


def test_it_depends_on_how_a_product_is_split() -> None:
    # (1)(2) and (4)(1/2) are the same adapter, but lie elsewhere.
    other = pair(([4.0, 0.0, 0.0], [0.5, 0.0, 0.0]), ([0.0, 1.0, 0.0], [0.0, 6.0, 0.0]))
    assert torch.equal(OTHER[0] @ OTHER[1], other[0] @ other[1])
    again = lora_lego([ONE, other], **SETTINGS)
    assert float(again[0, 0]) == pytest.approx(2.5 * 2.25)


def test_the_order_of_ranks_and_adapters_means_nothing() -> None:
    turned = (OTHER[0].flip(1), OTHER[1].flip(0))
    first, second = lora_lego([ONE, OTHER], **SETTINGS), lora_lego([turned, ONE], **SETTINGS)
    assert torch.equal(first, second)


def test_models_that_are_no_adapters_have_the_units_of_their_singular_triplets() -> None:
    # Units (2, 2), (1, 1) along two axes of the first and (2, 2) along the first axis of the second; two clusters.
    a, b = diagonal(4.0, 1.0, 0.0), diagonal(4.0, 0.0, 0.0)
    given = {"norms": False, "output": False}
    assert merged("lora_lego", [a, b], ZERO, **given) == near(diagonal(4.0, 1.0, 0.0))
    mixed = lora_lego([torch.tensor(a), OTHER], **{**SETTINGS, "rank": 9.0})
    assert mixed.tolist() == near(diagonal(6.0, 7.0, 0.0))


def test_units_of_no_effect_are_none() -> None:
    # A factor of zeros, as PEFT begins with, is no unit: k counts those of the other adapter.
    blank = (torch.zeros(3, 4), torch.ones(4, 3))
    b, a = joined([blank, ONE], **{**SETTINGS, "rank": 1.0})
    assert (b.shape[1], (b @ a).tolist()) == (2, near(diagonal(4.0, 0.0, 9.0)))
    b, a = joined([blank, blank], **SETTINGS)
    assert (b @ a).tolist() == ZERO


def test_equal_adapters_are_one_adapter() -> None:
    assert lora_lego([ONE, ONE], **{**SETTINGS, "rank": 1.0}).tolist() == near(diagonal(4.0, 0.0, 9.0))


def test_factors_that_are_no_numbers_are_refused() -> None:
    from evomerge.merge.methods import METHODS

    made = METHODS["lora_lego"].derived
    assert made is not None
    bad = (torch.full((3, 1), math.nan), torch.ones(1, 3))
    values = {**SETTINGS, "lambda_": 1.0}
    with pytest.raises(PoolError, match="NaN"):
        made.make(values, [torch.zeros(9)] * 2, torch.zeros(9), (3, 3), [bad, ONE])

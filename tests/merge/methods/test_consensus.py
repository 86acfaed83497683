from __future__ import annotations

import pytest
import torch
from merge.carry_out import carry_out, merged, weights
from merge.mergekits import fine_tunes

from evomerge.recipes.method_spec import Scalar

BASE = [1.0, 1.0, 1.0, 0.0]
A = [5.0, 2.0, 1.0, 2.0]  # +4 +1  0 +2
B = [1.5, 3.0, 1.0, -2.0]  # +0.5 +2 0 -2
C = [0.0, 2.0, 3.0, 1.0]  # -1 +1 +2 +1
# Sums are 3.5, 4, 2 and 1. What the others add up to: of A -0.5, 3, 2, -1; of B 3, 2, 2, 3; of C 4.5, 3, 0, 0.
HALF: list[dict[str, Scalar]] = [{"selectivity": 0.5}] * 3
# With a half, masks are 1 where twice the own magnitude is at least theirs: A 1 0 0 1, B 0 1 0 1, C 0 0 1 1.


def test_what_enough_masks_agree_on_stays() -> None:
    assert merged("consensus", [A, B, C], BASE, HALF, k=0) == [4.5, 5, 3, 1]
    assert merged("consensus", [A, B, C], BASE, HALF, k=1) == [4.5, 5, 3, 1]
    assert merged("consensus", [A, B, C], BASE, HALF, k=2) == [1, 1, 1, 1]
    assert merged("consensus", [A, B, C], BASE, HALF, k=2, lambda_=0.5) == [1, 1, 1, 0.5]
    assert merged("consensus", [A, B, C], BASE, HALF, k=3) == [1, 1, 1, 1]


def test_every_mask_has_a_selectivity_of_its_own() -> None:
    # With less than a third A has 1 1 0 1 and C 0 1 1 1: of both the second is 1 against 3.
    each: list[dict[str, Scalar]] = [{"selectivity": 0.33}, {"selectivity": 0.5}, {"selectivity": 0.33}]
    assert merged("consensus", [A, B, C], BASE, each, k=3) == [1, 5, 1, 1]
    # Of nothing everything is its own.
    assert merged("consensus", [A, B, C], BASE, [{"selectivity": 0.0}] * 3, k=3) == [4.5, 5, 3, 1]


def test_fewer_models_than_k() -> None:
    # Of two models both have to agree: B 0.5 2 0 -2 against C -1 1 2 1.
    each: list[dict[str, Scalar]] = [{"weight": 0.0}, {"selectivity": 0.5}, {"selectivity": 0.5}]
    assert merged("consensus", [A, B, C], BASE, each, k=3) == [0.5, 4, 1, -1]
    assert merged("consensus", [A], BASE, weights(1), k=3, shortcut=False) == A


def by_the_authors(inputs: list[torch.Tensor], base: torch.Tensor, selectivity: list[float], k: int) -> torch.Tensor:
    """Masks of models, compared with the merged model and the base, and then counted."""
    merged_model = base + sum(x - base for x in inputs)
    masks = [(base - x).abs() > limit * (merged_model - x).abs() for x, limit in zip(inputs, selectivity, strict=True)]
    return base + (merged_model - base) * (torch.stack(masks).sum(0) >= k)


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_same_as_the_authors_code(k: int) -> None:
    """As in nik-dim/tall_masks. fusion_bench 0.2.33 calls its masks with two task vectors and the base in the places of
    two models and the base: ``|theta_0 - tau_t| > lambda |tau - tau_t|``, which for weights that are larger than
    their changes is true almost everywhere."""
    base, inputs = fine_tunes()
    selectivity = [0.2, 0.4, 0.6]
    each: list[dict[str, Scalar]] = [{"selectivity": limit} for limit in selectivity]
    expected = by_the_authors(inputs, base, selectivity, k)
    different = (carry_out("consensus", inputs, base, each, {"k": k}) - expected).abs() > 1e-6
    assert different.float().mean() < 1e-3  # masks of models are rounded as models are
    assert k != 2 or 0.1 < (expected == base).float().mean() < 0.9

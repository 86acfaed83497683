"""EMR, TALL masks and Twin-Merging's differences on numbers that are computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from merge.carry_out import carry_out, merged

from evomerge.errors import PoolError
from evomerge.merge.methods import METHODS
from evomerge.merge.methods.switches import PARTS, TensorSwitch, part_of, twin_rank
from evomerge.recipes.switches import MASKS, SWITCHES

BASE = [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]
# Task vectors [[.5, -1, 0], [2, 0, -3], [1, 1, -.5]] and [[1, 1, 2], [-2, 4, -1], [0, 3, .5]].
SHARED = [[1.5, 0.0, 1.0], [4.0, 2.0, -1.0], [1.0, 1.0, -0.5]]
OWN = [[2.0, 2.0, 3.0], [0.0, 6.0, 1.0], [0.0, 3.0, 0.5]]


def test_emr_keeps_the_signs_of_the_task_and_the_sum_of_its_magnitudes() -> None:
    # The mask has (0, 0), (1, 2) and (2, 1); 14.5 / (.5 + 3 + 1).
    factor = 14.5 / 4.5
    expected = [[1 + 0.5 * factor, 1, 1], [2, 2, 2 - 3 * factor], [0, factor, 0]]
    for row, wanted in zip(merged("emr_switch", [SHARED, OWN], BASE), expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-6)
    plain = merged("emr_switch", [SHARED, OWN], BASE, [{}, {"rescale": False}])
    assert plain == [[1.5, 1, 1], [2, 2, -1], [0, 1, 0]]


def test_emr_of_signs_that_do_not_meet_is_the_base() -> None:
    assert merged("emr_switch", [[2.0, 0.0], [-1.0, 3.0]], [0.0, 1.0]) == [0.0, 1.0]
    assert merged("emr_switch", [[1.0, 1.0], [5.0, 5.0]], [1.0, 1.0]) == [1.0, 1.0]  # nothing shared: factor 1


def test_emr_looks_at_signs_and_not_at_a_product_that_underflows() -> None:
    assert merged("emr_switch", [[1e-30], [2e-30]], [0.0]) == pytest.approx([2e-30], rel=1e-6, abs=0)


def test_tall_masks_have_what_is_not_small_beside_what_the_others_add() -> None:
    # |tau_t| >= lambda |tau_s - tau_t|; the right side with lambda 1: [[.5, 2, 2], [4, 4, 2], [1, 2, 1]].
    assert merged("tall_switch", [SHARED, OWN], BASE, [{}, {"selectivity": 1.0}]) == [
        [1.5, 1.0, 1.0],  # 1 >= .5; 1 < 2; 2 >= 2, where the shared model is the base
        [2.0, 2.0, 2.0],  # 2 < 4; 4 >= 4, likewise; 1 < 2
        [0.0, 1.0, 0.0],  # 0 < 1; 3 >= 2; .5 < 1
    ]
    assert merged("tall_switch", [SHARED, OWN], BASE, [{}, {"selectivity": 0.0}]) == SHARED
    kept = merged("tall_switch", [SHARED, OWN], BASE, [{}, {"selectivity": 0.5}])
    assert kept == [[1.5, 0.0, 1.0], [4.0, 2.0, -1.0], [0.0, 1.0, -0.5]]


def test_tall_compares_with_the_task_vector_and_not_with_the_base() -> None:
    """As fusion_bench does, where 100 would be large beside a task vector of 1."""
    assert merged("tall_switch", [[104.0], [101.0]], [100.0], [{}, {"selectivity": 0.4}]) == [100.0]
    assert merged("tall_switch", [[103.0], [101.0]], [100.0], [{}, {"selectivity": 0.4}]) == [103.0]


def test_twin_adds_the_largest_singular_triplets_of_what_the_shared_model_lacks() -> None:
    shared = [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    own = [[4.0, 1.0, 1.0], [1.0, 3.0, 1.0], [1.0, 1.0, 2.0]]  # 3, 2, 1 on the diagonal more
    found = merged("twin_switch", [shared, own], None, [{}, {"rank": 0.4}])
    assert found == [pytest.approx(row, abs=1e-6) for row in [[4, 1, 1], [1, 1, 1], [1, 1, 1]]]
    assert merged("twin_switch", [shared, own], None, [{}, {"rank": 0.7}]) == own  # two triplets take 12 of 9 numbers
    assert merged("twin_switch", [shared, own], None, [{}, {"rank": 0.0}]) == shared
    assert merged("twin_switch", [[1.0, 2.0], [3.0, 5.0]]) == [3.0, 5.0]  # no matrix


def test_twin_is_the_nearest_of_its_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    shared, own = torch.randn(2, 24, 40, generator=generator)
    found = carry_out("twin_switch", [shared, own], None, [{}, {"rank": 0.25}])
    values = torch.linalg.svdvals((own - shared).double())
    assert float((own - found).double().norm()) == pytest.approx(float(values[6:].norm()), rel=1e-5)
    assert torch.linalg.matrix_rank((found - shared).double(), atol=1e-4) == 6


@pytest.mark.parametrize(
    ("shape", "rank", "expected"),
    [
        ((24, 40), 0.25, 6),
        ((40, 24), 0.25, 6),
        ((24, 40), 0.01, 1),
        ((9, 9), 0.5, 4),
        ((9, 9), 0.6, None),
        ((5,), 0.1, None),
        ((), 0.1, None),
        ((2, 3, 4), 0.1, None),
        ((0, 4), 0.1, None),
    ],
)
def test_the_rank_of_a_difference(shape: tuple[int, ...], rank: float, expected: int | None) -> None:
    assert twin_rank(shape, rank) == expected


@pytest.mark.parametrize("method", SWITCHES)
def test_without_one_task_it_is_the_shared_model(method: str) -> None:
    tensors = [SHARED, OWN, BASE]
    base = BASE if method in MASKS else None
    for shortcut in (True, False):
        assert merged(method, tensors, base, shortcut=shortcut) == SHARED
        assert merged(method, tensors[:1], base, shortcut=shortcut) == SHARED


def test_the_declarations_are_those_that_recipes_know() -> None:
    family = [name for name, method in METHODS.items() if method.spec.family == "switches"]
    assert sorted(family) == sorted(SWITCHES) == sorted(PARTS)
    assert {name for name in family if METHODS[name].spec.base == "required"} == set(MASKS)


@pytest.mark.parametrize("method", SWITCHES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(method: str, bad: float) -> None:
    own = torch.tensor(OWN)
    own[1, 1] = bad
    parameter: Any = METHODS[method].spec.parameters[0]
    values = {parameter.name: (parameter.default, parameter.default)}
    base = torch.tensor(BASE) if method in MASKS else None
    with pytest.raises(PoolError, match="NaN"):
        part_of(method, [torch.tensor(SHARED), own], base, values)


def test_a_switch_of_nothing_is_the_shared_tensor_in_memory_of_its_own() -> None:
    shared = torch.tensor(SHARED)
    found = TensorSwitch().on(shared, None)
    assert torch.equal(found, shared)
    assert found.data_ptr() != shared.data_ptr()

from __future__ import annotations

import math

import pytest
import torch
from merge.carry_out import carry_out, diagonal, merged, near, weights
from merge.mergekits import fine_tunes

from evomerge.merge.methods import METHODS, call_values

ZERO = [[0.0, 0.0, 0.0]] * 3


def test_the_first_triplets_of_every_model_are_summed() -> None:
    # One of three triplets for each of two models: 5 along the first axis and 4 along the second; they are orthogonal.
    a, b = diagonal(5.0, 1.0, 2.0), diagonal(3.0, 4.0, 0.0)
    assert merged("tsv_m", [a, b], ZERO) == near(diagonal(5.0, 4.0, 0.0))
    assert merged("tsv_m", [a, b], ZERO, lambda_=0.5) == near(diagonal(2.5, 2.0, 0.0))
    assert merged("tsv_m", [a, b], ZERO, weights(0.5, -1.0)) == near(diagonal(2.5, -4.0, 0.0))


def test_vectors_that_overlap_are_made_orthogonal() -> None:
    # Along (1, 0) and along (0.6, 0.8), of sizes 2 and 4, on the left; the right vectors are (1, 0) and (0, 1).
    a, b = [[2.0, 0.0], [0.0, 0.0]], [[0.0, 2.4], [0.0, 3.2]]
    # The polar factor of [[1, 0.6], [0, 0.8]] is [[c, s], [-s, c]] with tan = (0.6 - 0) / (1 + 0.8).
    c, s = 3 / math.sqrt(10), 1 / math.sqrt(10)
    result = merged("tsv_m", [a, b], [[0.0, 0.0], [0.0, 0.0]])
    assert result == [pytest.approx([2 * c, 4 * s]), pytest.approx([-2 * s, 4 * c])]


def test_equal_models_are_one_model() -> None:
    # Public code adds, for the directions that two equal models lack, whatever LAPACK returns.
    a = diagonal(6.0, 3.0, 1.0)
    assert merged("tsv_m", [a, a], ZERO) == near(diagonal(6.0, 0.0, 0.0))


def test_the_rank_that_models_keep() -> None:
    a = diagonal(8.0, 4.0, 2.0, 1.0)
    zero, other = torch.zeros(4, 4).tolist(), torch.zeros(4, 4).tolist()
    other[3][3] = 16.0
    assert merged("tsv_m", [a, other], zero) == near(diagonal(8.0, 4.0, 0.0, 16.0))
    assert merged("tsv_m", [a, other], zero, rank=0.5) == near(diagonal(8.0, 0.0, 0.0, 16.0))
    assert merged("tsv_m", [a, other], zero, rank=0.0) == near(diagonal(8.0, 0.0, 0.0, 16.0))  # one at least
    assert merged("tsv_m", [a], zero, rank=0.5) == near(diagonal(8.0, 4.0, 0.0, 0.0))


def test_matrices_smaller_than_there_are_models() -> None:
    # Public code keeps int(1 / 3) triplets, none. Here: the polar factor of three equal columns, on both sides.
    rows = [[[3.0, 0.0]], [[6.0, 0.0]], [[9.0, 0.0]]]
    assert merged("tsv_m", rows, [[0.0, 0.0]])[0] == pytest.approx([6.0, 0.0])


def test_what_is_no_matrix_is_averaged() -> None:
    assert merged("tsv_m", [[3.0, 1.0], [1.0, 0.0]], [1.0, 1.0]) == [2.0, 0.5]
    assert merged("tsv_m", [[3.0, 1.0], [1.0, 0.0]], [1.0, 1.0], weights(0.5, 1.0)) == [1.5, 0.5]


def test_a_model_alone_is_itself() -> None:
    base, inputs = fine_tunes()
    assert torch.equal(carry_out("tsv_m", inputs, base, weights(0, 1, 0)), inputs[1])
    assert torch.equal(carry_out("tsv_m", inputs, base, weights(0, 0.5, 0), {"lambda": 2.0}), inputs[1])
    assert torch.equal(carry_out("tsv_m", inputs, base, weights(0, 0, 0)), base)
    torch.testing.assert_close(
        carry_out("tsv_m", inputs, base, weights(0, 1, 0), {"rank": 1.0}, shortcut=False), inputs[1]
    )


def test_equal_weights_are_a_factor_on_one_tensor() -> None:
    base, inputs = fine_tunes()
    made = METHODS["tsv_m"].derived
    assert made is not None
    results = {}
    for last in (1.0, 0.9999999):
        values = call_values(METHODS["tsv_m"].spec, weights(1, 1, last), {})
        parts = made.make(values, [x.view(-1) for x in inputs], base.view(-1), base.shape)
        assert len(parts) == len(made.factors(values)) == (1 if last == 1 else 3)
        results[last] = carry_out("tsv_m", inputs, base, weights(1, 1, last))
    torch.testing.assert_close(results[1.0], results[0.9999999], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)])
def test_same_as_public_code(shape: tuple[int, int]) -> None:
    """The formula of fusion_bench 0.2.33 (`TSVM_utils.compute_and_sum_svd_mem_reduction`), of full rank.

    A list of scales there is applied to the task vectors before they are decomposed: the weights here.
    """
    generator = torch.Generator().manual_seed(3)
    tasks = [torch.randn(shape, generator=generator) for _ in range(3)]
    scales = [1.0, 0.3, 0.7]
    keep, parts = int(min(shape) / 3), []
    for task, scale in zip(tasks, scales, strict=True):
        u, s, vh = torch.linalg.svd(scale * task.double(), full_matrices=False)
        parts.append((u[:, :keep], s[:keep], vh[:keep]))
    left, values, right = (torch.cat([part[i] for part in parts], 1 if i == 0 else 0) for i in range(3))
    (a, _, b), (c, _, d) = (torch.linalg.svd(x, full_matrices=False) for x in (left, right))
    expected = a @ b @ torch.diag(values) @ c @ d
    ours = carry_out("tsv_m", tasks, torch.zeros(shape), weights(*scales))
    torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=1e-5)

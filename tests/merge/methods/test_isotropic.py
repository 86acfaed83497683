from __future__ import annotations

import math

import pytest
import torch
from merge.carry_out import carry_out, diagonal, merged, near
from merge.mergekits import fine_tunes

from evomerge.errors import PoolError
from evomerge.merge.methods.isotropic import spaces

ZERO = [[0.0, 0.0, 0.0]] * 3


def test_singular_values_become_their_mean() -> None:
    # The sum is diag(6, -3, 0) turned by a permutation: values 6 and 3, of mean 4.5; the third direction is none.
    a, b = [[0.0, 4.0, 0.0], [1.0, 0.0, 0.0], ZERO[0]], [[0.0, 2.0, 0.0], [-4.0, 0.0, 0.0], ZERO[0]]
    assert merged("iso_c", [a, b], ZERO) == [[0.0, 4.5, 0.0], [-4.5, 0.0, 0.0], ZERO[0]]
    assert merged("iso_c", [a, b], ZERO, lambda_=2.0) == [[0.0, 9.0, 0.0], [-9.0, 0.0, 0.0], ZERO[0]]
    assert merged("iso_c", [a, b], ZERO, lambda_=0.0, shortcut=False) == ZERO


def test_directions_of_a_sum_of_low_rank_are_not_made_up() -> None:
    base = torch.zeros(6, 8)
    u, v = torch.randn(6, 1, generator=torch.Generator().manual_seed(1)), torch.linspace(-1, 2, 8)[None]
    result = carry_out("iso_c", [u @ v, 2 * u @ v], base)
    torch.testing.assert_close(result, 3 * u @ v, rtol=1e-5, atol=1e-6)


def test_what_is_no_matrix_is_averaged() -> None:
    for method in ("iso_c", "iso_cts"):
        assert merged(method, [[3.0, 1.0], [1.0, 0.0]], [1.0, 1.0], lambda_=2.0) == [3.0, 0.0]
        whole = merged(method, [[[[3.0]], [[1.0]]], [[[1.0]], [[0.0]]]], [[[1.0]], [[1.0]]], lambda_=2.0)
        assert whole == [[[3.0]], [[0.0]]]


def test_common_and_own_directions() -> None:
    # Half of the smaller side for the sum, the rest divided: one common direction, one of each model.
    assert spaces((3, 3), 2, 0.34) == (1, 1)
    a, b = diagonal(5.0, 2.0, 0.0), diagonal(3.0, 0.0, -1.0)
    # The sum begins with 8 along the first axis; without that, a has 2 along the second and b 1 along the third.
    level = (8 + 2 + 1) / 3
    assert merged("iso_cts", [a, b], ZERO, common=0.34) == near(diagonal(level, level, -level))


def test_own_directions_that_overlap_are_made_orthogonal() -> None:
    # No common ones; both models have one of their own, along (1, 0) and along (0.6, 0.8) on both sides.
    a = [[2.0, 0.0], [0.0, 0.0]]
    b = [[4 * 0.36, 4 * 0.48], [4 * 0.48, 4 * 0.64]]
    # The polar factor on both sides is the same orthogonal Q: Q Q^T = 1, times the mean of 2 and 4.
    result = merged("iso_cts", [a, b], [[0.0, 0.0], [0.0, 0.0]], common=0.0)
    assert result == [pytest.approx([3.0, 0.0]), pytest.approx([0.0, 3.0], abs=1e-6)]


def test_all_directions_common_are_those_of_iso_c() -> None:
    base, inputs = fine_tunes()
    torch.testing.assert_close(
        carry_out("iso_cts", inputs, base, None, {"common": 1.0}), carry_out("iso_c", inputs, base)
    )


@pytest.mark.parametrize(("shape", "models"), [((2, 9), 3), ((1, 1), 2), ((5, 4), 3), ((7, 7), 2)])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.8, 1.0])
def test_spaces_fill_the_smaller_side(shape: tuple[int, int], models: int, share: float) -> None:
    # The authors' rounding of (2 - 0) / 3 gives three models one direction each, of two that there are.
    shared, own = spaces(shape, models, share)
    assert shared >= 0
    assert own >= 0
    assert shared + own * models == min(shape)


def public_code(tasks: list[torch.Tensor], fraction: float | None) -> torch.Tensor:
    """The formulas of fusion_bench 0.2.33 (`isotropic_merging/iso_utils.py`), which are the authors'.

    They agree where all matrices are of full rank. Elsewhere the code is not to be followed: directions that a matrix
    does not have are whatever LAPACK returns, at full size, and more directions of the models than a matrix has leave a
    negative number of common ones.
    """
    count, both = len(tasks), torch.stack(tasks).sum(0)
    u, s, vh = torch.linalg.svd(both, full_matrices=False)
    if fraction is None:
        return u @ torch.diag(torch.full_like(s, float(s.mean()))) @ vh
    side = min(both.shape)
    common = side - round((side - int(side * fraction)) / count) * count
    own = (side - common) // count
    left, values, right = torch.zeros_like(u), torch.zeros_like(s), torch.zeros_like(vh)
    for i, task in enumerate(tasks):
        rest = task - u[:, :common] @ u[:, :common].T @ task
        a, b, c = torch.linalg.svd(rest, full_matrices=False)
        at = slice(i * own, (i + 1) * own)
        left[:, at], values[at], right[at] = a[:, :own], b[:own], c[:own]
    left[:, count * own :], values[count * own :], right[count * own :] = u[:, :common], s[:common], vh[:common]
    (a, _, b), (c, _, d) = (torch.linalg.svd(x, full_matrices=False) for x in (left, right))
    return (a @ b) @ (c @ d) * values.mean()


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)])
@pytest.mark.parametrize("fraction", [None, 0.3, 0.8])
def test_same_as_public_code(shape: tuple[int, int], fraction: float | None) -> None:
    generator = torch.Generator().manual_seed(3)
    tasks = [torch.randn(shape, generator=generator) for _ in range(3)]
    shared = {} if fraction is None else {"common": fraction}
    ours = carry_out("iso_c" if fraction is None else "iso_cts", tasks, torch.zeros(shape), None, shared)
    expected = public_code([task.double() for task in tasks], fraction)
    torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv_m", "wudi", "optmerge", "opcm"])
def test_what_is_not_finite_is_refused(method: str) -> None:
    base, inputs = fine_tunes()
    inputs[1][3, 4] = math.nan
    with pytest.raises(PoolError, match="input 2 has values that are NaN"):
        carry_out(method, inputs, base)

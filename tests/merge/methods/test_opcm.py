from __future__ import annotations

import pytest
import torch
from merge.carry_out import carry_out, merged

from evomerge.merge.methods.opcm import order_of

ZERO = [[0.0, 0.0, 0.0]] * 3


def test_the_second_model_leaves_out_what_the_first_has() -> None:
    # The first is diag(3, 2, 1): its singular vectors are the axes. Values of 3 of 6 are half: a corner of one.
    first = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    second = torch.arange(1.0, 10.0).view(3, 3)
    kept = second * (1 - torch.eye(3))
    total = first + kept
    scale = (first.norm() + second.norm()) / 2 / total.norm()
    result = carry_out("opcm", [first, second], torch.zeros(3, 3))
    torch.testing.assert_close(result, total * scale)
    # Of 0.85 the corner is the first two: what of the second lies between them goes as well.
    kept[0, 1] = kept[1, 0] = 0
    total = first + kept
    scale = (first.norm() + second.norm()) / 2 / total.norm()
    result = carry_out("opcm", [first, second], torch.zeros(3, 3), None, {"alpha": 0.85, "lambda": 2.0})
    torch.testing.assert_close(result, 2 * total * min(1.0, float(scale)))


def test_with_all_directions_taken_only_the_first_is_left() -> None:
    # Public code leaves the corner empty for an alpha of 1: no share of the sum is larger.
    first, second = [[4.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [1.0, 0.0]]
    zero = [[0.0, 0.0], [0.0, 0.0]]
    shrunk = (5 + 2**0.5) / 2 / 5  # to the mean norm
    expected = [pytest.approx([4 * shrunk, 0.0]), pytest.approx([0.0, 3 * shrunk])]
    assert merged("opcm", [first, second], zero, alpha=1.0) == expected
    assert merged("opcm", [first, second], zero, alpha=0.99)[0][1] != 0


def test_the_order_of_models_counts() -> None:
    a, b = torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.arange(1.0, 10.0).view(3, 3)
    base = torch.zeros(3, 3)
    assert not torch.allclose(carry_out("opcm", [a, b], base), carry_out("opcm", [b, a], base), rtol=0.01)


def test_places_are_the_order() -> None:
    models = [torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    base = torch.zeros(5, 4)
    as_given = carry_out("opcm", [models[2], models[0], models[1]], base)
    placed = carry_out("opcm", models, base, [{"place": 0.4}, {"place": 0.9}, {"place": -1.0}])
    assert torch.equal(placed, as_given)
    # Equal places are as the inputs come, and what the numbers are does not matter.
    assert order_of([0.5, 0.5, 0.1]) == (2, 0, 1)
    assert order_of([0.0, 0.0, 0.0]) == (0, 1, 2)
    assert torch.equal(carry_out("opcm", models, base, [{"place": 0.1}] * 3), carry_out("opcm", models, base))


def test_what_is_no_matrix_is_summed_to_the_mean_norm() -> None:
    assert merged("opcm", [[3.0, 0.0], [0.0, 4.0]], [0.0, 0.0]) == pytest.approx([3 * 3.5 / 5, 4 * 3.5 / 5])
    # What cancels is not enlarged.
    assert merged("opcm", [[3.0, 0.0], [-2.0, 0.0]], [0.0, 0.0]) == [1.0, 0.0]


def test_models_that_are_the_base_change_directions_of_none() -> None:
    a = [[4.0, 0.0], [0.0, 3.0]]
    zero = [[0.0, 0.0], [0.0, 0.0]]
    assert merged("opcm", [zero, a], zero) == [[2.0, 0.0], [0.0, 1.5]]  # half the norm, on average
    assert merged("opcm", [zero, zero], zero) == zero


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_same_as_public_code(shape: tuple[int, int]) -> None:
    """The recursion of fusion_bench 0.2.33 (`opcm/opcm.py`), of one matrix: whole bases, and scales step by step.

    There, the norm is that of the whole model; of a model of one matrix it is the same.
    """
    generator = torch.Generator().manual_seed(4)
    tasks = [torch.randn(shape, generator=generator) for _ in range(4)]
    wide = [task.double() for task in tasks]
    merged_, last = wide[0], 1.0
    for count, task in enumerate(wide[1:], 2):
        u, s, vh = torch.linalg.svd(merged_, full_matrices=True)
        corner = int((s.cumsum(0) / s.sum() > 0.6).float().argmax())
        inside = u.T @ task @ vh.T
        inside.diagonal().fill_(0)
        inside[:corner, :corner] = 0
        step = last * merged_ + u @ inside @ vh
        average = float(torch.stack([each.norm() for each in wide[:count]]).mean())
        last = float(step.norm()) / average
        merged_ = step / last
    ours = carry_out("opcm", tasks, torch.zeros(shape), None, {"alpha": 0.6})
    torch.testing.assert_close(ours, merged_.float(), rtol=1e-5, atol=1e-5)

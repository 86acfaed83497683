from __future__ import annotations

import pytest
import torch
from merge.carry_out import carry_out, diagonal, merged, near
from merge.mergekits import fine_tunes

from evomerge.recipes.method_spec import Scalar

ZERO = [[0.0, 0.0, 0.0]] * 3


def test_the_least_interference_in_closed_form() -> None:
    # Diagonals d_i: along each axis the mean of d_i, weighted by d_i^2 / ||d_i||^2; the last axis has none.
    a, b = diagonal(2.0, 1.0, 0.0), diagonal(1.0, 3.0, 0.0)
    first = (2 * 4 / 5 + 1 * 1 / 10) / (4 / 5 + 1 / 10)
    second = (1 * 1 / 5 + 3 * 9 / 10) / (1 / 5 + 9 / 10)
    assert merged("wudi", [a, b], ZERO) == near(diagonal(first, second, 0.0))
    assert merged("wudi", [a, b], ZERO, lambda_=2.0) == near(diagonal(2 * first, 2 * second, 0.0))


def test_inputs_that_do_not_overlap_get_what_each_model_does() -> None:
    a, b = [[1.0, 2.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 5.0, 6.0], [0.0, 0.0, 7.0, 9.0]]
    result = merged("wudi", [a, b], [[0.0] * 4] * 2)
    assert result == [pytest.approx([1.0, 2.0, 5.0, 6.0]), pytest.approx([3.0, 1.0, 7.0, 9.0])]


def test_the_loss_is_least_there() -> None:
    base, inputs = fine_tunes()
    tasks = [(x - base).double() for x in inputs]

    def loss(x: torch.Tensor) -> float:
        return sum(float((((x - t) @ t.T) ** 2).sum() / (t * t).sum()) for t in tasks)

    found = (carry_out("wudi", inputs, base) - base).double()
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        other = found + 0.01 * torch.randn(found.shape, generator=generator, dtype=torch.float64)
        assert loss(other) > loss(found)
    assert loss(found) < loss(torch.stack(tasks).sum(0))


def test_a_model_that_is_the_base_does_not_count() -> None:
    base, inputs = fine_tunes()
    expected = carry_out("wudi", inputs[:2], base)
    torch.testing.assert_close(carry_out("wudi", [*inputs[:2], base], base), expected)
    steps: dict[str, Scalar] = {"iterations": 5, "rate": 1e-3}
    assert torch.isfinite(carry_out("wudi", [*inputs[:2], base], base, None, steps)).all()


def test_a_model_alone_is_itself() -> None:
    base, inputs = fine_tunes()
    for method in ("wudi", "optmerge", "opcm"):
        assert torch.equal(carry_out(method, inputs[:1], base), inputs[0])
        half = carry_out(method, inputs[:1], base, None, {"lambda": 0.5})
        torch.testing.assert_close(half, base + 0.5 * (inputs[0] - base))


def test_what_is_no_matrix_is_averaged() -> None:
    for method in ("wudi", "optmerge"):
        assert merged(method, [[3.0, 1.0], [1.0, 0.0]], [1.0, 1.0], lambda_=2.0) == [3.0, 0.0]


def by_autograd(
    start: torch.Tensor,
    targets: list[torch.Tensor],
    directions: list[torch.Tensor],
    tasks: list[torch.Tensor],
    optimiser: type[torch.optim.Optimizer],
    iterations: int,
    **options: float,
) -> torch.Tensor:
    """The loop of public code, in float64: the loss as it is written, its gradient and torch's optimisers."""
    x = torch.nn.Parameter(start.clone())
    steps = optimiser([x], **options)  # type: ignore[call-arg]
    norms = torch.stack([(task * task).sum() for task in tasks])
    for _ in range(iterations):
        steps.zero_grad()
        products = (x[None] - torch.stack(targets)) @ torch.stack(directions).transpose(1, 2)
        (products.square() / norms[:, None, None]).sum().backward()
        steps.step()
    return x.detach()


@pytest.mark.parametrize("shape", [(6, 25), (25, 6)])
def test_steps_are_those_of_public_code(shape: tuple[int, int]) -> None:
    """The formula of fusion_bench 0.2.33 (`wudi/wudi.py`): Adam from the sum.

    It is wrong where a model is the base: the division by its norm makes the whole tensor NaN.
    """
    generator = torch.Generator().manual_seed(2)
    tasks = [torch.randn(shape, generator=generator) for _ in range(3)]
    wide = [task.double() for task in tasks]
    expected = by_autograd(torch.stack(wide).sum(0), wide, wide, wide, torch.optim.Adam, 40, lr=1e-2)
    ours = carry_out("wudi", tasks, torch.zeros(shape), None, {"iterations": 40, "rate": 1e-2})
    torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=1e-5)


def test_steps_lead_to_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(2)
    tasks = [torch.randn((4, 6), generator=generator) for _ in range(2)]
    base = torch.zeros(4, 6)
    found = carry_out("wudi", tasks, base)
    near = [carry_out("wudi", tasks, base, None, {"iterations": n, "rate": 0.01}) for n in (10, 100, 2000)]
    distances = [float((x - found).norm()) for x in near]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.05 * float(found.norm())


def low_rank(matrix: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best matrix of a rank, and ``S V^T`` of it."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rows = torch.diag(s[:keep]) @ vh[:keep]
    return u[:, :keep] @ rows, rows


@pytest.mark.parametrize("shape", [(6, 25), (25, 6)])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_low_rank_as_the_authors_do(shape: tuple[int, int], tuning: str) -> None:
    """The formulas of the authors' `wudi_merging2`: InternVL's for full fine-tuning, Qwen2-VL's for adapters."""
    generator = torch.Generator().manual_seed(2)
    tasks = [torch.randn(shape, generator=generator) for _ in range(3)]
    wide, keep = [task.double() for task in tasks], int(min(shape) / 3)
    mean = torch.stack(wide).mean(0)
    directions = [low_rank(task, keep)[1] for task in wide]
    if tuning == "full":
        targets = [mean + low_rank(task - mean, keep)[0] for task in wide]
        expected = by_autograd(torch.stack(wide).sum(0), targets, directions, wide, torch.optim.Adam, 40, lr=1e-2)
    else:
        targets = [low_rank(task, keep)[0] for task in wide]
        expected = by_autograd(mean, targets, directions, wide, torch.optim.SGD, 40, lr=1e-2, momentum=0.9)
    shared: dict[str, Scalar] = {"iterations": 40, "rate": 1e-2, "tuning": tuning}
    ours = carry_out("optmerge", tasks, torch.zeros(shape), None, shared)
    torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=1e-5)


def test_the_minimum_of_low_rank_is_the_nearest() -> None:
    # One of three directions each: the first axis for a, the second for b. The third is as it was in the sum.
    a, b = diagonal(3.0, 0.0, 1.0), diagonal(0.0, 4.0, 1.0)
    # a - mean = diag(1.5, -2, 0), whose first direction is the second axis: the target keeps the mean's 1.5 of the
    # first. b - mean is the opposite: the target has 2 + 2 = 4 of the second.
    assert merged("optmerge", [a, b], ZERO) == near(diagonal(1.5, 4.0, 2.0))
    # For adapters the targets are the first directions themselves, and the third axis that of the mean.
    assert merged("optmerge", [a, b], ZERO, tuning="lora") == near(diagonal(3.0, 4.0, 1.0))

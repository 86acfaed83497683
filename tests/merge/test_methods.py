"""Merge methods on tensors small enough to be computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from evomerge.errors import ConfigError, InfeasibleError
from evomerge.merge.engine import merge_tensor
from evomerge.merge.methods import BASE, METHODS, call_values, merge_method, registry, specs
from evomerge.merge.methods.arithmetic import dot
from evomerge.merge.methods.registry import Context
from evomerge.merge.methods.ties import cut_of, trimmed
from evomerge.method import ParameterSpec, Scalar


def merged(
    name: str,
    inputs: Sequence[Sequence[float]],
    base: Sequence[float] | None = None,
    each: Sequence[dict[str, Scalar]] | None = None,
    **shared: Scalar,
) -> list[float]:
    method = METHODS[name]
    given = {key.rstrip("_"): value for key, value in shared.items()}
    values = call_values(method.spec, each or [{} for _ in inputs], given)
    out = torch.empty(len(inputs[0]))
    below = torch.tensor(base) if base is not None else None
    merge_tensor(method, [torch.tensor(x) for x in inputs], below, values, tuple(range(len(inputs))), out=out)
    return out.tolist()


def weights(*numbers: float) -> list[dict[str, Scalar]]:
    return [{"weight": number} for number in numbers]


def test_linear() -> None:
    a, b = [1.0, 2.0, -4.0], [3.0, 6.0, 8.0]
    assert merged("linear", [a, b]) == [2.0, 4.0, 2.0]
    assert merged("linear", [a, b], each=weights(1, 3)) == [2.5, 5.0, 5.0]
    assert merged("linear", [a, b], each=weights(1, 3), normalize=False) == [10.0, 20.0, 20.0]
    assert merged("linear", [a, b], each=weights(2, -1)) == [-1.0, -2.0, -16.0]
    assert merged("linear", [a, b], each=weights(0, 0), normalize=False) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "dare_linear"])
@pytest.mark.parametrize("numbers", [(1.0, -1.0), (0.0, 0.0), (0.1, 0.2, -0.3)])
def test_weights_that_cannot_be_normalised(method: str, numbers: tuple[float, ...]) -> None:
    with pytest.raises(InfeasibleError, match=r"sum to .* where normalize is true"):
        merged(method, [[1.0, 2.0]] * len(numbers), [0.0, 0.0], weights(*numbers), normalize=True)


def test_small_weights_are_normalised() -> None:
    assert merged("linear", [[1.0], [5.0]], each=weights(1e-12, 3e-12)) == pytest.approx([4.0])


def test_slerp() -> None:
    half = math.sqrt(0.5)
    assert merged("slerp", [[1.0, 0.0], [0.0, 1.0]], t=0.5) == pytest.approx([half, half])
    third = merged("slerp", [[2.0, 0.0], [0.0, 4.0]], t=1 / 3)
    assert third == pytest.approx([2 * math.cos(math.pi / 6), 4 * math.sin(math.pi / 6)])
    # 60 degrees apart: both coefficients are sin 30 / sin 60.
    sixty = merged("slerp", [[1.0, 0.0], [0.5, math.sqrt(0.75)]], t=0.5)
    assert sixty == pytest.approx([1.5 / math.sqrt(3), 0.5])


def test_slerp_is_linear_where_there_is_no_angle() -> None:
    assert merged("slerp", [[1.0, 1.0], [3.0, 3.0]], t=0.25) == [1.5, 1.5]
    assert merged("slerp", [[1.0, 1.0], [-1.0, -1.0]], t=0.25) == [0.5, 0.5]
    assert merged("slerp", [[0.0, 0.0], [4.0, 2.0]], t=0.25) == [1.0, 0.5]
    assert merged("slerp", [[0.0, 0.0], [0.0, 0.0]], t=0.25) == [0.0, 0.0]


def test_task_arithmetic() -> None:
    base, a, b = [1.0, 1.0], [2.0, 0.0], [1.0, 5.0]
    assert merged("task_arithmetic", [a, b], base) == [2.0, 4.0]
    assert merged("task_arithmetic", [a, b], base, weights(0.5, 0.25)) == [1.5, 1.5]
    assert merged("task_arithmetic", [a, b], base, weights(0.5, 0.25), lambda_=2.0) == [2.0, 2.0]
    assert merged("task_arithmetic", [a, b], base, weights(1, 3), normalize=True) == [1.25, 3.75]
    assert merged("task_arithmetic", [a, b], base, weights(-1, 0)) == [0.0, 2.0]


def test_ties_elects_signs_and_averages_what_agrees() -> None:
    base = [0.0] * 5
    a, b, c = [1.0, 1.0, -1.0, 0.0, 2.0], [3.0, -2.0, 1.0, 0.0, -2.0], [2.0, 4.0, -3.0, 0.0, 0.0]
    # Sums 6, 3, -3, 0, 0: the last is elected positive, where only the first model agrees.
    assert merged("ties", [a, b, c], base) == [2.0, 2.5, -2.0, 0.0, 2.0]
    assert merged("ties", [a, b, c], base, normalize=False) == [6.0, 5.0, -4.0, 0.0, 2.0]
    assert merged("ties", [a, b, c], base, lambda_=0.5) == [1.0, 1.25, -1.0, 0.0, 1.0]
    # Weights 1, 3, 1 turn the second vote to 1 - 6 + 4 < 0 and the last to 2 - 6 < 0.
    assert merged("ties", [a, b, c], base, weights(1, 3, 1)) == pytest.approx([12 / 5, -2.0, -2.0, 0.0, -2.0])


def test_ties_with_a_negative_weight() -> None:
    base, a, b = [0.0, 0.0, 0.0], [2.0, 2.0, 1.0], [1.0, -1.0, 3.0]
    # Weighted tasks (2, 2, 1) and (-1, 1, -3): signs +, +, -; agreeing weights 1, 1 - 1 = 0 (read as 1), -1.
    assert merged("ties", [a, b], base, weights(1, -1)) == [2.0, 3.0, 3.0]


def test_ties_trims_to_the_largest() -> None:
    base = [1.0, 1.0, 1.0, 1.0]
    a = [5.0, 1.5, -2.0, 0.0]  # task 4, 0.5, -3, -1
    one: list[dict[str, Scalar]] = [{"density": 0.5}]
    assert merged("ties", [a], base, one) == [5.0, 1.0, -2.0, 1.0]
    assert merged("ties", [a], base, [{"density": 0.2}]) == [5.0, 1.0, 1.0, 1.0]  # at least one element
    assert merged("ties", [a], base, [{"density": 0.0}]) == base
    b = [1.0, 3.0, 1.0, 1.0]
    assert merged("ties", [a, b], base, [{"density": 0.5}, {"density": 0.25}]) == [5.0, 3.0, -2.0, 1.0]


@pytest.mark.parametrize("offset", [0, 2, 4])
def test_equal_magnitudes_are_kept_from_the_front(offset: int) -> None:
    task = torch.tensor([1.0, -2.0, 2.0, 5.0, -2.0, 2.0])
    cut = cut_of(task, 0.5)
    assert cut is not None
    assert (cut.threshold, cut.first) == (2.0, 4)
    expected = torch.tensor([0.0, -2.0, 2.0, 5.0, 0.0, 0.0])
    assert torch.equal(trimmed(task[offset:], cut, offset), expected[offset:])


def test_nothing_is_cut_when_only_zeros_would_be() -> None:
    assert cut_of(torch.tensor([0.0, 3.0, 0.0, -1.0]), 0.75) is None
    assert cut_of(torch.tensor([1.0, 3.0]), 1.0) is None
    assert cut_of(torch.zeros(0), 0.5) is None


def test_dare_rescales_what_it_keeps() -> None:
    n = 1000
    base, a = [1.0] * n, [3.0] * n
    each: list[dict[str, Scalar]] = [{"density": 0.25, "weight": 0.5}]
    result = merged("dare_linear", [a], base, each)
    assert set(result) == {1.0, 1.0 + 0.5 * 2.0 / 0.25}
    assert 200 < sum(value != 1.0 for value in result) < 300
    plain = merged("dare_linear", [a], base, each, rescale=False)
    assert set(plain) == {1.0, 2.0}
    assert [value != 1.0 for value in plain] == [value != 1.0 for value in result]
    assert merged("dare_ties", [a], base, each) == pytest.approx(result)
    assert merged("dare_linear", [a], base, [{"density": 0.0}]) == base


def test_dare_ties_elects_among_what_is_kept() -> None:
    n = 2000
    base, a, b = [0.0] * n, [3.0] * n, [-1.0] * n
    result = merged("dare_ties", [a, b], base, [{"density": 0.5}, {"density": 1.0}])
    # Where the first model is dropped the second elects its own sign.
    assert set(result) == {6.0, -1.0}


@pytest.mark.parametrize(
    ("name", "each", "shared", "expected"),
    [
        ("linear", weights(0, 2), {}, 1),
        ("linear", weights(0, 2), {"normalize": False}, None),
        ("linear", weights(0, 1), {"normalize": False}, 1),
        ("linear", weights(0.5, 0.5), {}, None),
        ("slerp", [{}, {}], {"t": 0.0}, 0),
        ("slerp", [{}, {}], {"t": 1.0}, 1),
        ("slerp", [{}, {}], {}, None),
        ("task_arithmetic", weights(0, 0), {}, BASE),
        ("task_arithmetic", weights(1, 1), {"lambda": 0.0}, BASE),
        ("task_arithmetic", weights(1, 0), {}, 0),
        ("task_arithmetic", weights(0.5, 0), {"lambda": 2.0}, 0),
        ("task_arithmetic", weights(0.5, 0), {}, None),
        ("ties", [{"weight": 0.3}, {"weight": 0.0}], {}, 0),
        ("ties", [{"density": 0.5}, {"weight": 0.0}], {}, None),
        ("dare_ties", [{"weight": 1.0}, {"weight": 0.0}], {}, 0),
        ("dare_linear", [{"weight": 1.0, "density": 0.5}, {"weight": 0.0}], {}, None),
    ],
)
def test_results_that_equal_an_input(
    name: str, each: list[dict[str, Scalar]], shared: dict[str, Scalar], expected: int | None
) -> None:
    method = METHODS[name]
    assert method.unchanged is not None
    assert method.unchanged(call_values(method.spec, each, shared)) == expected


def test_dot_product_is_exact_enough_and_deterministic() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1_100_003, generator=generator) for _ in range(2))
    exact = float((a.double() * b.double()).sum())
    assert dot(a, b) == pytest.approx(exact, abs=1e-3 * math.sqrt(a.numel()) / 100)
    assert dot(a, a) == pytest.approx(float((a.double() ** 2).sum()), rel=1e-6)
    assert dot(torch.zeros(0), torch.zeros(0)) == 0.0


def test_users_register_their_own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    table = registry._METHODS

    @merge_method("transpose_mean", ParameterSpec("share", 0.5), summary="not elementwise", max_inputs=2)
    def transpose_mean(
        inputs: Sequence[torch.Tensor], base: torch.Tensor | None, *, share: float, context: Context
    ) -> torch.Tensor:
        return inputs[0] * share + inputs[0].T * (1 - share)

    method = table["transpose_mean"]
    assert method.spec.parameters[0].name == "share"
    assert "transpose_mean" not in specs()  # the patched table is not the public one
    out = torch.empty(2, 2, dtype=torch.bfloat16)
    merge_tensor(method, [torch.tensor([[1.0, 2.0], [4.0, 8.0]])], None, {"share": 0.5}, out=out)
    assert out.tolist() == [[1.0, 3.0], [3.0, 8.0]]
    with pytest.raises(ConfigError, match="'transpose_mean' is registered twice"):
        merge_method("transpose_mean", summary="")(transpose_mean)

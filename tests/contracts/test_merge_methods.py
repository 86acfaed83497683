"""The contract of merge methods. A new method passes by adding its plain float64 reading to `REFERENCES`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evomerge.merge.engine import merge_tensor
from evomerge.merge.masks import mask_key
from evomerge.merge.methods import METHODS, call_values
from evomerge.method import Scalar

Array = NDArray[np.float64]
KEYS = tuple(mask_key(7, f"model {i}", "tensor") for i in range(4))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# Independent readings of the papers: flat float64 arrays, element by element where that is clearest.


def splitmix(key: int, element: int) -> int:
    """The 31-bit number of an element, in Python integers."""
    z = (key + (element // 2 + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    z ^= z >> 31
    return ((z >> 32) if element % 2 else (z % 2**32)) >> 1


def dropped(task: Array, index: int, density: float, rescale: bool) -> Array:
    kept = np.array([splitmix(KEYS[index], e) < density * 2**31 for e in range(task.size)])
    return task * kept / (density if rescale and density > 0 else 1)


def trimmed(task: Array, density: float) -> Array:
    """The largest magnitudes, the earlier of equal ones first."""
    keep = 0 if density == 0 else min(task.size, max(1, int(density * task.size)))
    order = sorted(range(task.size), key=lambda e: (-abs(task[e]), e))
    result = np.zeros_like(task)
    result[order[:keep]] = task[order[:keep]]
    return result


def elected(tasks: Sequence[Array], weights: Sequence[float], normalize: bool) -> Array:
    mean = np.zeros_like(tasks[0])
    for e in range(mean.size):
        votes = [w * task[e] for w, task in zip(weights, tasks, strict=True)]
        sign = 1 if sum(votes) >= 0 else -1
        agreeing = [i for i, vote in enumerate(votes) if vote * sign > 0]
        if agreeing:
            divisor = sum(weights[i] for i in agreeing) if normalize else 1
            mean[e] = sum(votes[i] for i in agreeing) / (divisor if abs(divisor) > 1e-5 else 1)
    return mean


def linear(x: Sequence[Array], base: Array, *, weight: Sequence[float], normalize: bool) -> Array:
    total = sum(w * v for w, v in zip(weight, x, strict=True))
    return np.asarray(total / sum(weight) if normalize else total)


def slerp(x: Sequence[Array], base: Array, *, t: float) -> Array:
    a, b = x
    norms = math.sqrt(float(a @ a)), math.sqrt(float(b @ b))
    cosine = float(a @ b) / (norms[0] * norms[1]) if min(norms) > 1e-8 else 1.0
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def task_arithmetic(
    x: Sequence[Array], base: Array, *, weight: Sequence[float], lambda_: float, normalize: bool
) -> Array:
    return base + lambda_ * linear([v - base for v in x], base, weight=weight, normalize=normalize)


def ties(x: Sequence[Array], base: Array, *, weight: Any, density: Any, lambda_: float, normalize: bool) -> Array:
    tasks = [trimmed((v - base).astype(np.float32).astype(np.float64), d) for v, d in zip(x, density, strict=True)]
    return base + lambda_ * elected(tasks, weight, normalize)


def dare_linear(
    x: Sequence[Array], base: Array, *, weight: Any, density: Any, lambda_: float, normalize: bool, rescale: bool
) -> Array:
    tasks = [dropped(v - base, i, density[i], rescale) for i, v in enumerate(x)]
    return base + lambda_ * linear(tasks, base, weight=weight, normalize=normalize)


def dare_ties(
    x: Sequence[Array], base: Array, *, weight: Any, density: Any, lambda_: float, normalize: bool, rescale: bool
) -> Array:
    tasks = [dropped(v - base, i, density[i], rescale) for i, v in enumerate(x)]
    return base + lambda_ * elected(tasks, weight, normalize)


REFERENCES: Mapping[str, Callable[..., Array]] = {
    f.__name__: f for f in (linear, slerp, task_arithmetic, ties, dare_linear, dare_ties)
}


def models(count: int = 4, size: int = 301, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """A base and models around it, of one dtype."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator)
    return [base.to(dtype)] + [
        (base + 0.3 * torch.randn(size, generator=generator)).to(dtype) for _ in range(count - 1)
    ]


def merge(
    name: str,
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    each: Sequence[Mapping[str, Scalar]],
    shared: Mapping[str, Scalar] | None = None,
    *,
    keys: tuple[int, ...] = KEYS,
    dtype: torch.dtype = torch.float32,
    block: int | None = None,
) -> torch.Tensor:
    method = METHODS[name]
    values = call_values(method.spec, each, shared or {})
    out = torch.full(base.shape, torch.nan, dtype=dtype)
    below = base if method.spec.base == "required" else None
    merge_tensor(method, inputs, below, values, keys[: len(inputs)], out=out, block=block)
    return out


def settings(name: str, inputs: int, seed: int = 0) -> tuple[list[dict[str, Scalar]], dict[str, Scalar]]:
    """Parameters within the search bounds of the declaration, other than the defaults."""
    rng = np.random.default_rng(seed)

    def draw(per_input: bool) -> dict[str, Scalar]:
        drawn: dict[str, Scalar] = {}
        for p in METHODS[name].spec.parameters:
            if p.per_input == per_input and p.kind == "continuous":
                drawn[p.name] = float(rng.uniform(p.low, p.high))
            elif p.per_input == per_input:
                drawn[p.name] = bool(rng.integers(2))
        return drawn

    return [draw(True) for _ in range(inputs)], draw(False)


def most_inputs(name: str) -> int:
    return METHODS[name].spec.max_inputs or 3


def test_every_method_is_under_contract() -> None:
    assert REFERENCES.keys() == METHODS.keys()


@pytest.mark.parametrize("name", REFERENCES)
class MergeMethodContract:
    """What every merge method promises."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("beside", [False, True])
    def test_weight_one_on_a_single_model_is_that_model(self, name: str, dtype: str, beside: bool) -> None:
        spec = METHODS[name].spec
        base, *inputs = models(1 + most_inputs(name), dtype=DTYPES[dtype])
        if spec.parameter("weight") is None:  # an interpolation: at its ends
            for t, expected in ((0.0, inputs[0]), (1.0, inputs[1])):
                result = merge(name, inputs, base, [{}, {}], {"t": t}, dtype=DTYPES[dtype])
                assert torch.equal(result, expected)
            return
        for chosen in range(len(inputs)) if beside else (0,):
            given = inputs if beside else [inputs[0]]
            each: list[dict[str, Scalar]] = [{"weight": float(i == chosen)} for i in range(len(given))]
            result = merge(name, given, base, each, dtype=DTYPES[dtype])
            assert torch.equal(result, given[chosen])

    @pytest.mark.parametrize("seed", range(6))
    def test_agrees_with_an_independent_reading(self, name: str, seed: int) -> None:
        base, *inputs = models(1 + most_inputs(name), seed=seed)
        each, shared = settings(name, len(inputs), seed)
        result = merge(name, inputs, base, each, shared)
        expected = REFERENCES[name](
            [x.double().numpy() for x in inputs],
            base.double().numpy(),
            **call_values(METHODS[name].spec, each, shared),
        )
        np.testing.assert_allclose(result.double().numpy(), expected, rtol=1e-5, atol=2e-6)

    def test_defaults_agree_with_an_independent_reading(self, name: str) -> None:
        base, *inputs = models(1 + most_inputs(name), seed=9)
        each: list[dict[str, Scalar]] = [{} for _ in inputs]
        expected = REFERENCES[name](
            [x.double().numpy() for x in inputs], base.double().numpy(), **call_values(METHODS[name].spec, each, {})
        )
        np.testing.assert_allclose(merge(name, inputs, base, each).double().numpy(), expected, rtol=1e-5, atol=2e-6)

    def test_order_of_inputs_does_not_matter(self, name: str) -> None:
        base, *inputs = models(1 + most_inputs(name))
        each, shared = settings(name, len(inputs), seed=3)
        order = [*range(1, len(inputs)), 0]
        turned = {**shared, "t": 1 - float(shared["t"])} if "t" in shared else shared
        keys = tuple(KEYS[i] for i in order)
        result = merge(name, [inputs[i] for i in order], base, [each[i] for i in order], turned, keys=keys)
        torch.testing.assert_close(result, merge(name, inputs, base, each, shared), rtol=1e-5, atol=2e-6)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_computes_in_float32_and_rounds_once(self, name: str, dtype: str) -> None:
        narrow = models(1 + most_inputs(name), dtype=DTYPES[dtype])
        each, shared = settings(name, len(narrow) - 1, seed=4)
        wide = merge(name, [x.float() for x in narrow[1:]], narrow[0].float(), each, shared)
        result = merge(name, narrow[1:], narrow[0], each, shared, dtype=DTYPES[dtype])
        assert result.dtype == DTYPES[dtype]
        assert torch.equal(result, wide.to(DTYPES[dtype]))

    @pytest.mark.parametrize("block", [1, 2, 7, 64, 300])
    def test_same_bits_for_every_block_size(self, name: str, block: int) -> None:
        base, *inputs = models(1 + most_inputs(name))
        each, shared = settings(name, len(inputs), seed=5)
        whole = merge(name, inputs, base, each, shared)
        assert torch.equal(merge(name, inputs, base, each, shared, block=block), whole)

    def test_same_bits_for_every_thread_count(self, name: str) -> None:
        base, *inputs = models(1 + most_inputs(name), size=200_000)
        each, shared = settings(name, len(inputs), seed=5)
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(merge(name, inputs, base, each, shared))
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])

    def test_arguments_are_not_written_to(self, name: str) -> None:
        tensors = models(1 + most_inputs(name))
        copies = [tensor.clone() for tensor in tensors]
        each, shared = settings(name, len(tensors) - 1, seed=6)
        merge(name, tensors[1:], tensors[0], each, shared)
        assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))

    @pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 4), (0,)])
    def test_any_shape(self, name: str, shape: tuple[int, ...]) -> None:
        size = math.prod(shape)
        base, *inputs = [x.view(shape) for x in models(1 + most_inputs(name), size=size)]
        each, shared = settings(name, len(inputs), seed=8)
        result = merge(name, inputs, base, each, shared)
        flat = merge(name, [x.reshape(-1) for x in inputs], base.reshape(-1), each, shared)
        assert result.shape == shape
        assert torch.equal(result.view(-1), flat)
        assert torch.isfinite(result).all()

    def test_zero_and_equal_tensors_stay_finite(self, name: str) -> None:
        count = most_inputs(name)
        each, shared = settings(name, count, seed=1)
        zero = torch.zeros(50)
        assert torch.equal(merge(name, [zero] * count, zero, each, shared), zero)
        (same,) = models(1, size=50)
        each = [{**given, "weight": 0.5} for given in each] if METHODS[name].spec.parameter("weight") else each
        result = merge(name, [same] * count, same, each, {"t": 0.3} if "t" in shared else {"normalize": True})
        torch.testing.assert_close(result, same)

    def test_random_only_where_declared(self, name: str) -> None:
        base, *inputs = models(1 + most_inputs(name))
        each, shared = settings(name, len(inputs), seed=2)
        first = merge(name, inputs, base, each, shared)
        assert torch.equal(merge(name, inputs, base, each, shared), first)
        other = merge(name, inputs, base, each, shared, keys=KEYS[::-1])
        assert torch.equal(first, other) != METHODS[name].random


class TestMergeMethods(MergeMethodContract):
    """The contract, for every registered method."""


def test_reference_masks_start_from_the_documented_hash() -> None:
    digest = hashlib.sha256(b"7\nmodel 0\ntensor").digest()
    assert KEYS[0] == int.from_bytes(digest[:8], "little")

"""Carrying a merge method out on tensors by torch operations, without a pool, plan or engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from merge.made_up_statistics import statistics_of

from evomerge.merge.methods import BASE, METHODS, Context, Method, call_values
from evomerge.merge.mixes.masks import mask_key
from evomerge.merge.mixes.mix import Mix
from evomerge.merge.mixes.torch_mix import mix_block
from evomerge.merge.mixes.torch_statistics import TensorStatistics
from evomerge.recipes.method_spec import Scalar

KEYS = tuple(mask_key(7, f"model {i}", "tensor") for i in range(4))
"""Mask keys of up to four inputs."""


def carry_out(
    method: Method | str,
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None = None,
    each: Sequence[Mapping[str, Scalar]] | None = None,
    shared: Mapping[str, Scalar] | None = None,
    *,
    keys: Sequence[int] = KEYS,
    dtype: torch.dtype = torch.float32,
    block: int | None = None,
    shortcut: bool = True,
    ranked: bool = False,
) -> torch.Tensor:
    """The merged tensor, computed in float32 and rounded once to `dtype`.

    Args:
        method: a method or its name.
        inputs, base: tensors of one shape and any merged dtype. The base is given only to methods that take one.
        each: parameters of each input.
        shared: the other parameters.
        keys: mask keys of the inputs, for random methods.
        dtype: of the result.
        block: elements merged at a time.
        ranked: whether ranks in rows are to be had, as on accelerators.
        shortcut: take an input as it is where `Method.unchanged` says that it is the result, as a plan does.
    """
    method = METHODS[method] if isinstance(method, str) else method
    each = each if each is not None else [{} for _ in inputs]
    values = call_values(method.spec, each, shared or {})
    below = base if method.spec.base != "none" else None
    if method.check is not None:
        method.check(values)
    same = method.unchanged(values) if shortcut and method.unchanged is not None else None
    if same is not None:
        chosen = below if same == BASE else inputs[same]
        assert chosen is not None
        return chosen.to(dtype, copy=True)
    statistics = TensorStatistics if ranked else Unranked
    return _computed(method, inputs, below, values, tuple(keys[: len(inputs)]), block, statistics).to(dtype)


class Unranked(TensorStatistics):
    """Without ranks in rows, as on the CPU."""

    def row_ranks(self, index: int) -> None:  # type: ignore[override]
        return None


def _computed(
    method: Method,
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    values: Mapping[str, Any],
    keys: tuple[int, ...],
    block: int | None,
    statistics: type[TensorStatistics],
) -> torch.Tensor:
    shape = inputs[0].shape
    data = tuple(statistics_of(method, list(inputs)))
    flat = [tensor.reshape(-1) for tensor in inputs]
    origin = base.reshape(-1) if base is not None else None
    if method.derived is not None:
        assert origin is not None
        mix = method.derived.simple(values, len(flat))
        if mix is None:
            mix = method.derived.mix(values)
            flat = [origin, *method.derived.make(values, flat, origin, shape)]
        return _mixed(mix, flat, origin, keys, block).view(shape)
    mix = method.mix(values, statistics(flat, origin, tuple(shape), keys)) if method.mix else None
    if mix is None:
        assert method.function is not None
        if not method.elementwise:
            below = base.float() if base is not None else None
            return method.function(
                [x.float() for x in inputs], below, context=Context(0, keys, statistics=data), **values
            )
    results = []
    size = block or max(1, flat[0].numel())
    for start in range(0, flat[0].numel(), size):
        parts = [x[start : start + size] for x in flat]
        under = origin[start : start + size] if origin is not None else None
        if mix is not None:
            results.append(mix_block(mix, parts, under, keys, start))
        else:
            assert method.function is not None
            floats, under = [x.float() for x in parts], under.float() if under is not None else None
            own = tuple(each.part(slice(start, start + size)) if each is not None else None for each in data)
            results.append(method.function(floats, under, context=Context(start, keys, statistics=own), **values))
    return torch.cat(results).view(shape) if results else torch.empty(shape)


def merged(
    method: Method | str,
    inputs: Sequence[Any],
    base: Any = None,
    each: Sequence[Mapping[str, Scalar]] | None = None,
    *,
    shortcut: bool = True,
    **shared: Scalar,
) -> Any:
    """`carry_out` on (nested) lists of numbers; ``lambda`` is written ``lambda_``."""
    given = {name.rstrip("_"): value for name, value in shared.items()}
    tensors = [torch.tensor(x, dtype=torch.float32) for x in inputs]
    below = torch.tensor(base, dtype=torch.float32) if base is not None else None
    return carry_out(method, tensors, below, each, given, shortcut=shortcut).tolist()


def diagonal(*numbers: float) -> list[list[float]]:
    """A square matrix with these on its diagonal."""
    return [[number if i == j else 0.0 for j in range(len(numbers))] for i, number in enumerate(numbers)]


def near(matrix: Sequence[Sequence[float]]) -> list[Any]:
    """What equals a matrix but for rounding."""
    return [pytest.approx(row, abs=1e-6) for row in matrix]


def weights(*numbers: float) -> list[dict[str, Scalar]]:
    """Per-input parameters that give each input a weight."""
    return [{"weight": number} for number in numbers]


def _mixed(
    mix: Mix, flat: Sequence[torch.Tensor], origin: torch.Tensor | None, keys: tuple[int, ...], block: int | None
) -> torch.Tensor:
    """A mix of flat tensors, in blocks."""
    size, count = block or max(1, flat[0].numel()), flat[0].numel()
    results = [
        mix_block(
            mix,
            [x[start : start + size] for x in flat],
            origin[start : start + size] if origin is not None else None,
            keys,
            start,
        )
        for start in range(0, count, size)
    ]
    return torch.cat(results) if results else torch.empty(0)

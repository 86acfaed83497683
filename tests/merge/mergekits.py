"""mergekit's own merge methods on tensors, for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch

from evomerge.recipes.method_spec import Scalar

api = pytest.importorskip("mergekit.merge_methods.api")


def by_mergekit(
    method: str,
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor,
    each: Sequence[Mapping[str, Scalar]] | None = None,
    shared: Mapping[str, Scalar] | None = None,
) -> torch.Tensor:
    """What mergekit makes of the same inputs, which differ from a base.

    Args:
        method: its name there.
        inputs, base: tensors of one shape and dtype.
        each: parameters of each input.
        shared: the other parameters.
    """
    each = each or [{} for _ in inputs]
    names = sorted({name for given in each for name in given})
    per_input = {name: {i: given[name] for i, given in enumerate(each)} for name in names}
    result = api.merge_tensors(
        [*inputs, base],
        method,
        ids=[*range(len(inputs)), "base"],
        base_index=len(inputs),
        parameters={**(shared or {}), **per_input},
    )
    assert isinstance(result, torch.Tensor)
    return result


def fine_tunes(
    shape: tuple[int, ...] = (61, 47), count: int = 3, size: float = 0.02, seed: int = 0
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and models near it, float32; no two task vectors have equal magnitudes to speak of."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base, [base + size * torch.randn(shape, generator=generator) for _ in range(count)]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal but for the rounding of float32."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)

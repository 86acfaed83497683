"""Merging in pieces: the same bits, whatever the size of pieces and windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evomerge.errors import EvomergeError
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.streaming import stream_slice
from evomerge.merge.execution.tensor_merge import TensorMerge, merge_tensor
from evomerge.merge.kernels.sums import CHUNK
from evomerge.merge.methods import METHODS
from evomerge.merge.mixes.cpu_statistics import CpuStatistics, Window
from evomerge.merge.planning.plan import make_plan
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe, parameters

OF_WEIGHTS = {name: method for name, method in METHODS.items() if method.spec.statistics is None}
"""Methods that read no statistics of data: nobody has made any for these models."""

Llamas = Callable[..., dict[str, Path]]
SETTINGS = {"weight": (0.6, 0.7, 0.4), "density": 0.6, "lambda": 0.9, "t": 0.3, "gamma": 0.05, "select_topk": 0.5}


def recipe_of(pool: Pool, method: str) -> Recipe:
    spec = OF_WEIGHTS[method].spec
    names = [name for name in pool.info.sources if name != "base"][: spec.max_inputs or 2]
    names = [*names, "a"][: max(spec.min_inputs, len(names))]
    known = {p.name: p for p in spec.parameters}

    def values(per_input: bool, i: int) -> dict[str, float]:
        found = {n: v for n, v in SETTINGS.items() if n in known and known[n].per_input == per_input}
        return {n: v[i] if isinstance(v, tuple) else v for n, v in found.items()}

    base = Input("base") if spec.base == "required" or "base" in method else None
    inputs = tuple(Input(name, None, parameters(values(True, i))) for i, name in enumerate(names))
    return pool.info.recipe(
        SliceRecipe(slice_, method, inputs, parameters(values(False, 0)), base) for slice_ in pool.info.slices
    )


@pytest.mark.parametrize("method", sorted(OF_WEIGHTS))
def test_pieces_are_the_merged_slice(method: str, llamas: Llamas) -> None:
    pool = open_pool({name: str(folder) for name, folder in llamas().items()}, "base")
    plan = make_plan(recipe_of(pool, method), pool)
    for entry in (*plan.slices[:3], plan.slices[-1]):
        expected = merge_slice(entry, pool)
        found = {name: torch.full_like(tensor, torch.nan) for name, tensor in expected.items()}
        for name, begin, piece in stream_slice(entry, pool, window=1, size=97):
            found[name].view(-1)[begin : begin + piece.numel()] = piece
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_not_finite_is_found_in_a_later_piece() -> None:
    source = torch.ones(1000)
    source[900] = torch.inf
    job = TensorMerge(OF_WEIGHTS["linear"], [source], None, {"weight": (1.0,), "normalize": True}, (), (1000,))
    out = torch.empty(500)
    job.run(out)
    assert torch.equal(out, torch.ones(500))
    with pytest.raises(EvomergeError, match="NaN or beyond the range of float32; input 1 has such values"):
        job.run(out, 500)


def test_what_is_not_finite_is_said_with_the_largest_parameter() -> None:
    sources, values = [torch.ones(8), 2 * torch.ones(8)], {"weight": (1.0, 3e38), "normalize": False}
    job = TensorMerge(OF_WEIGHTS["linear"], sources, None, values, (), (8,))
    with pytest.raises(EvomergeError, match=r"range of float32; its largest parameter is weight=3e\+38 of input 2;"):
        job.run(torch.empty(8))


@pytest.mark.parametrize("windows", [1, 2])
def test_statistics_by_windows(windows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    count = 3 * CHUNK + 77
    base, a, b = (torch.randn(count, generator=generator) for _ in range(3))
    passed = []
    window = Window(windows * CHUNK, lambda: passed.append(1))
    whole = CpuStatistics([a, b], base, (count,), (1, 2))
    parts = CpuStatistics([a, b], base, (count,), (1, 2), window)
    assert (whole.gram() == parts.gram()).all()
    assert (whole.gram(True) == parts.gram(True)).all()
    cut = whole.cut(0, 100, count // 3)
    assert cut is not None
    assert parts.cut(0, 100, count // 3) == cut
    assert whole.magnitude_kept(1, cut, 0.5) == parts.magnitude_kept(1, cut, 0.5)
    assert passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pieces_of_a_random_cut_and_a_mask(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    base, a, b = (torch.randn(5000, generator=generator).to(dtype) for _ in range(3))
    for method in ("ties", "dare_ties", "breadcrumbs", "della"):
        spec = OF_WEIGHTS[method].spec
        values = {
            (p.name if p.name != "lambda" else "lambda_"): (p.default,) * 2 if p.per_input else p.default
            for p in spec.parameters
        }
        values |= {"weight": (0.5, 0.7), "density": (0.5, 0.4)}
        whole = torch.empty(5000, dtype=dtype)
        merge_tensor(OF_WEIGHTS[method], [a, b], base, values, (3, 4), out=whole)
        job = TensorMerge(OF_WEIGHTS[method], [a, b], base, values, (3, 4), (5000,))
        if not job.divisible:
            continue
        for begin in range(0, 5000, 777):
            piece = torch.empty(min(777, 5000 - begin), dtype=dtype)
            job.run(piece, begin)
            assert torch.equal(piece, whole[begin : begin + 777])

"""Ranks of what is computed of several tensors, and PCB-Merging by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import PoolError
from evomerge.merge.execution.noted_statistics import NotedStatistics
from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.scope_values import ScopeValues
from evomerge.merge.execution.scopes import Members
from evomerge.merge.execution.tensor_merge import merge_tensor
from evomerge.merge.methods import METHODS

Tensors = dict[str, torch.Tensor]


def counted(models: Sequence[Tensors], base: Tensors, notes: Notes, opened: list[str] | None = None) -> ScopeValues:
    def open_(name: str) -> tuple[list[torch.Tensor], torch.Tensor]:
        if opened is not None:
            opened.append(name)
        return [model[name].view(-1) for model in models], base[name].view(-1)

    return ScopeValues("all", Members.shaped({name: tuple(x.shape) for name, x in base.items()}), notes, open_)


def merged(models: Sequence[Tensors], base: Tensors, **shared: Any) -> dict[str, list[float]]:
    """The merge by `pcb` of tensors that are one model."""
    values = {"weight": (1.0,) * len(models), "lambda_": 1.0, "clip": 0.0, "scope": "model", **shared}
    scope, result = counted(models, base, Notes(0)), {}
    for name, below in base.items():
        flat, shape = [model[name].view(-1) for model in models], tuple(below.shape)
        names = [*((number, name) for number in range(len(models))), ("base", name)]
        statistics = NotedStatistics(flat, below.view(-1), shape, (), names, Notes(0), values=lambda *_: scope)
        out = torch.empty(shape)
        merge_tensor(METHODS["pcb"], flat, below.view(-1), values, out=out, statistics=statistics)
        result[name] = out.view(-1).tolist()
    return result


def test_two_tensors_compete_as_one() -> None:
    """Magnitudes 4, 2, 0 of A and 0, 2, 4 of B, of which the first is a tensor of its own."""
    base = {"one": torch.ones(1), "two": torch.ones(2, 1)}
    a = {"one": torch.tensor([5.0]), "two": torch.tensor([[3.0], [1.0]])}
    b = {"one": torch.tensor([1.0]), "two": torch.tensor([[3.0], [-3.0]])}
    assert merged([a, b], base, density=1.0) == {"one": [5], "two": pytest.approx([3, -3])}
    # Scores e^2 tanh 1, e^0.5 2 tanh 0.25, 0: half of them is the first alone, and in B the last.
    assert merged([a, b], base, density=0.5) == {"one": [5], "two": pytest.approx([1, -3])}
    # By itself the second tensor has sizes 1, 0 in A and 0, 1 in B, so that each keeps its own.
    assert merged([a, b], base, density=0.5, scope="tensor") == {"one": [5], "two": pytest.approx([3, -3])}
    # C wants +2 where A has +4, and the other way round: one cut of the scores for both tensors.
    c = {"one": torch.tensor([3.0]), "two": torch.tensor([[5.0], [1.0]])}
    top, low = math.exp(2) * (math.tanh(1) + math.tanh(0.5)), math.exp(0.5) * (math.tanh(0.25) + math.tanh(0.5))
    mean = 1 + (4 + low / top * 2) / (1 + low / top)
    assert merged([a, c], base, density=1.0) == {"one": pytest.approx([mean]), "two": pytest.approx([mean, 1])}
    # Below the second of three scores is nothing: each element has the model of its largest score.
    assert merged([a, c], base, density=0.5) == {"one": [5], "two": pytest.approx([5, 1])}


def test_every_rank_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"a": torch.zeros(40, 50), "b": torch.zeros(3), "c": torch.zeros(70_001)}
    values = {name: torch.randn(x.shape, generator=generator) for name, x in base.items()}
    values["a"][:10] = 0
    values["c"][::3] = -1e-42  # a subnormal number
    values["c"][1::300] = -0.0
    notes, opened = Notes(10**7), list[str]()
    scope = counted([values], base, notes, opened)
    flat = np.sort(np.concatenate([x.view(-1).numpy() for x in values.values()]))
    ranks = [0, 1, 5, len(flat) // 3, len(flat) // 2, len(flat) - 2, len(flat) - 1, *range(600, len(flat), 9001)]

    def score(tasks: Sequence[Any]) -> Sequence[Any]:
        return [tasks[0], -tasks[0]]

    found, negative = scope.at("x", score, lambda _: ranks)
    assert list(found) == [float(flat[rank]) for rank in ranks]
    assert list(negative) == [float(-flat[len(flat) - 1 - rank]) for rank in ranks]
    assert opened == 2 * ["a", "b", "c"]  # all bins that ranks lie in at once
    assert scope.at("x", score, lambda _: ranks[:3])[0] == found[:3]
    assert len(opened) == 6  # of the same bins
    assert scope.at("y", lambda tasks: [2 * tasks[0]], lambda _: ranks[:1]) == [(2 * found[0],)]
    assert len(opened) == 12


def test_what_is_not_finite_is_named() -> None:
    base = {"a": torch.zeros(2), "b": torch.zeros(2)}
    bad = {"a": torch.ones(2), "b": torch.tensor([1.0, math.inf])}
    with pytest.raises(PoolError, match="of its scope, tensor 'b': input 2 has values that are NaN"):
        counted([base, bad], base, Notes(0)).at("x", lambda tasks: tasks, lambda _: [0])

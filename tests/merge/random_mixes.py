"""Random mixes of random tensors: many ties, zeros of both signs, subnormals, memory that is aligned to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from evomerge.merge.mixes.mix import LARGEST, Cut, Mix, Term

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KEYS = (0, 7, 2**32 - 1, 2**32, 2**63 + 12345, 2**64 - 1)
"""Mask keys of up to six inputs."""


@dataclass(frozen=True)
class Case:
    """A mix and all that it is of."""

    mix: Mix
    inputs: tuple[torch.Tensor, ...]
    base: torch.Tensor
    dtype: torch.dtype


def unaligned(values: torch.Tensor, elements: int) -> torch.Tensor:
    """A copy that starts `elements` after the start of its memory."""
    memory = torch.empty(values.numel() + elements, dtype=values.dtype)
    memory[elements:] = values
    return memory[elements:]


def random_case(rng: np.random.Generator, count: int) -> Case:
    """Anything that a kernel must take; results are finite in every dtype."""
    many, differences, elect = int(rng.integers(1, 7)), bool(rng.integers(2)), bool(rng.integers(2))
    base = random_tensor(rng, count)
    inputs = tuple(random_tensor(rng, count, base) for _ in range(many))
    tasks = [x.float() - base.float() if differences else x.float() for x in inputs]
    mix = Mix(
        tuple(random_term(rng, task) for task in tasks),
        differences=differences,
        elect=elect,
        normalize=bool(rng.integers(2)),
        divisor=float(rng.choice([1.0, 1.0, 0.75, -1 / 3])),
        scale=float(rng.choice([1.0, 1.0, -0.5, 1 / 3])),
    )
    return Case(mix, inputs, base, DTYPES[int(rng.integers(3))])


def random_tensor(rng: np.random.Generator, count: int, near: torch.Tensor | None = None) -> torch.Tensor:
    """Multiples of an eighth, numbers of all sizes down to float16's subnormals, or small steps from another tensor."""
    kind = int(rng.integers(3 if near is None else 4))
    if kind == 0:
        values = rng.integers(-8, 9, count) / 8
    elif kind == 1:
        values = rng.normal(0, 1, count) * 2.0 ** rng.integers(-26, 2, count)
    elif kind == 2:
        values = rng.normal(0, 1, count)
    else:
        assert near is not None
        values = near.double().numpy() + rng.integers(-2, 3, count) / 64
    values = np.where(rng.random(count) < 0.1, -0.0, values)
    dtype = DTYPES[int(rng.integers(3))]
    return unaligned(torch.from_numpy(values).to(dtype), int(rng.choice([0, 0, 1, 5])))


def random_term(rng: np.random.Generator, task: torch.Tensor) -> Term:
    """A term whose cut runs through the middle of equal magnitudes."""
    weight = float(rng.choice([0.0, 1.0, *rng.normal(0, 1, 4)]))
    density = rng.choice([None, None, 0.0, 1e-9, 0.3, 0.999, 1.0])
    vote = rng.choice([None, None, 0.0, -0.5, 2.0])
    cut = random_cut(rng, task) if rng.random() < 0.5 else None
    return Term(weight, cut, None if density is None else float(density), None if vote is None else float(vote))


def random_cut(rng: np.random.Generator, task: torch.Tensor) -> Cut:
    count = task.numel()
    magnitudes = task.view(torch.int32).bitwise_and(0x7FFFFFFF)

    def end() -> tuple[int, int]:
        if not count or rng.random() < 0.1:
            return int(rng.choice([0, LARGEST])), int(rng.integers(count + 1))
        return int(magnitudes[rng.integers(count)]), int(rng.integers(count + 1))

    low = end()
    high = end() if rng.random() < 0.6 else (LARGEST, 0)
    if high[0] < low[0] and rng.random() < 0.8:
        low, high = high, low
    return Cut(*low, *high)


def with_weights(case: Case, weights: Sequence[float]) -> Case:
    """The same with other weights."""
    terms = tuple(term._replace(weight=w) for term, w in zip(case.mix.terms, weights, strict=True))
    return replace(case, mix=case.mix._replace(terms=terms))

"""Perturbations of low rank, made again from their seed: the weights of evolution strategies (EGGROLL)."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merge.methods.low_rank import Factors
from evomerge.merge.methods.registry import Context, Values, merge_method
from evomerge.merge.methods.spectral import on_one_thread
from evomerge.recipes.method_spec import ParameterSpec, numbers_of

MOST_RANK = 1024


def _unchanged(values: Values) -> int | None:
    return None if any(numbers_of(values["coefficients"])) else 0


@merge_method(
    "low_rank_noise",
    ParameterSpec("coefficients", "", kind="numbers", summary="of each perturbation, one after the other"),
    ParameterSpec("first", 0, kind="integer", low=0, high=1, minimum=0, maximum=2**53, summary="number of the first"),
    ParameterSpec("noise", 0, kind="integer", low=0, high=1, minimum=0, maximum=2**53, summary="their seed"),
    ParameterSpec("rank", 1, kind="integer", low=1, high=8, minimum=1, maximum=MOST_RANK, summary="of each"),
    summary="a model and perturbations of low rank, made again from their seed (EGGROLL, arXiv 2511.16652)",
    family="noise",
    min_inputs=1,
    max_inputs=1,
    unchanged=_unchanged,
    random=True,
)
def low_rank_noise(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    coefficients: str,
    first: float,
    noise: float,
    rank: float,
    context: Context,
) -> torch.Tensor:
    """``W + sum_p c_p A_p B_p^T`` of every matrix, ``A_p`` and ``B_p`` standard normal, of `rank` columns (section 3).

    Perturbation p has the number ``first + p``; its factors follow from that, `noise`, what the input is made of and
    the name of the tensor, and from nothing else. With one coefficient of ``sigma / sqrt(rank)`` it is a member of
    EGGROLL's population, with minus that its antithetic twin, and with the weighted scores of all pairs the
    update. Tensors that are no matrices stay as they are. For what `strategy=eggroll` searches; of no use by hand.
    """
    found = noise_factors(inputs[0].shape, coefficients, first, noise, rank, context.keys[0])
    if found is None:
        return inputs[0].clone()
    b, a = (factor.to(inputs[0].device) for factor in found)
    with on_one_thread():
        return torch.addmm(inputs[0], b, a)


def noise_factors(
    shape: Sequence[int], coefficients: str, first: float, noise: float, rank: float, key: int
) -> Factors | None:
    """What `low_rank_noise` adds to a tensor, as one product in float32 on the host; ``None`` for no matrix.

    Args:
        shape: of the tensor.
        coefficients, first, noise, rank: parameters of the method.
        key: of the tensor, as `masks.mask_key` gives it.
    """
    weights = numbers_of(coefficients)
    if len(shape) != 2 or not any(weights):
        return None
    left, right = [], []
    for place, weight in enumerate(weights):
        if weight:
            a, b = _normal(int(key), int(noise), int(first) + place, (shape[0], shape[1]), int(rank))
            left.append(a * np.float32(weight))
            right.append(b)
    return Factors(torch.from_numpy(np.concatenate(left, 1)), torch.from_numpy(np.concatenate(right, 1).T.copy()))


@functools.lru_cache(maxsize=4096)  # twins, and the update after them, have the same
def _normal(
    key: int, seed: int, number: int, shape: tuple[int, int], rank: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The factors of a perturbation: float32 of shapes ``(rows, rank)`` and ``(columns, rank)``, not to be written to.

    By Box and Muller's transform in float64 of Philox' bits, which every version of numpy gives alike; its normal
    numbers may change.
    """
    digest = hashlib.sha256(f"{key}\n{seed}\n{number}".encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    count = sum(shape) * rank
    bits = generator.random_raw(2 * ((count + 1) // 2))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(uniform[0::2])), 2.0 * math.pi * uniform[1::2]
    numbers = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].astype(np.float32)
    return numbers[: shape[0] * rank].reshape(-1, rank), numbers[shape[0] * rank :].reshape(-1, rank)

"""Mixes on the CPU: threads that run the compiled kernels on parts of a tensor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evomerge.merge.kernels.memory import BF16, F16, F32
from evomerge.merge.kernels.mixing import mix as mix_kernel
from evomerge.merge.masks import kept_below
from evomerge.merge.mix import LARGEST, Cut, Mix
from evomerge.merge.torch_mix import least_vote, vote_of

KINDS = {torch.float32: F32, torch.bfloat16: BF16, torch.float16: F16}
"""The kernels' codes of dtypes."""

PART = 1 << 16
"""Elements; less is not worth another thread."""

_STREAM = 1 << 20  # bytes: a smaller result is better left in the cache


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="merge")


def in_parts(run: Callable[[int, int], int], count: int) -> list[int]:
    """Run ``run(begin, end)`` over `count` elements on as many threads as torch uses; the parts' results in order."""
    threads = min(torch.get_num_threads(), -(-count // PART))
    if threads <= 1:
        return [run(0, count)]
    step = -(-count // threads // PART) * PART
    bounds = [(begin, min(begin + step, count)) for begin in range(0, count, step)]
    return list(_threads(threads).map(run, *zip(*bounds, strict=True)))


@dataclass(frozen=True)
class MixCall:
    """A mix ready to be carried out, by any thread and in any parts.

    Attributes:
        count: elements.
        begin: where in the tensor they begin.
        arguments, settings: of the kernel, before and after the range.
    """

    count: int
    begin: int
    arguments: tuple[Any, ...]
    settings: tuple[Any, ...]

    def __call__(self, begin: int, end: int) -> int:
        """Carry out elements `begin` to `end` of `count`; returns whether one is not finite."""
        bad: int = mix_kernel(*self.arguments, self.begin + begin, self.begin + end, *self.settings)
        return bad


def mix_(
    out: torch.Tensor,
    mix: Mix,
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    keys: Sequence[int],
    begin: int = 0,
) -> bool:
    """Carry a mix out into `out`, rounded once; returns whether every element is finite.

    Args:
        out: flat, contiguous, on the CPU, of a merged dtype: the tensor, or its elements from `begin` on.
        inputs, base: the whole tensors, contiguous, of any merged dtypes.
        keys: mask keys of the inputs, where terms have a density.
        begin: where in the tensor `out` begins.
    """
    count = out.numel()
    if not count:
        return True
    call = mix_call(out, mix, inputs, base, keys, begin)
    if call is not None:
        return not any(in_parts(call, count))
    if base is not None and mix.differences:
        out.copy_(base[begin : begin + count])
    else:
        out.zero_()
    return bool(torch.isfinite(out).all())


def mix_call(
    out: torch.Tensor,
    mix: Mix,
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    keys: Sequence[int],
    begin: int = 0,
) -> MixCall | None:
    """What `mix_` does, ready to be done; ``None`` where no input has a weight. The tensors must outlive it."""
    used = [i for i, term in enumerate(mix.terms) if term.weight != 0]
    if not used:
        return None
    origin = base if mix.differences else None
    first = out.data_ptr() - begin * out.dtype.itemsize  # where the whole tensor would lie
    terms = [mix.terms[i] for i in used]
    votes = [vote_of(term) for term in terms]
    arguments = (
        np.array([inputs[i].data_ptr() for i in used], np.int64),
        np.array([KINDS[inputs[i].dtype] for i in used], np.int64),
        origin.data_ptr() if origin is not None else 0,
        KINDS[origin.dtype] if origin is not None else F32,
        first,
        KINDS[out.dtype],
    )
    settings = (
        np.array([term.weight for term in terms], np.float32),
        np.array(votes, np.float32),
        np.array([cut_row(term.cut) for term in terms], np.int64),
        np.array([keys[i] if mix.terms[i].density is not None else 0 for i in used], np.uint64),
        np.array([mask_bound(term.density) for term in terms], np.int64),
        origin is not None,
        mix.elect,
        mix.normalize,
        np.float32(least_vote(votes)),
        np.float32(1 if mix.elect else mix.divisor),
        np.float32(mix.scale),
        out.nbytes >= _STREAM and first % 32 == 0,
    )
    return MixCall(out.numel(), begin, arguments, settings)


def mask_bound(density: float | None) -> int:
    """What random numbers must lie below; -1 where every element stays."""
    return -1 if density is None or density >= 1 else kept_below(density)


def cut_row(cut: Cut | None) -> tuple[int, int, int, int]:
    """A cut as the kernels take it; -1 first for none."""
    if cut is None:
        return -1, 0, 0, 0
    # Nothing finite is above the largest: infinities stay, to be found in the result.
    return cut.low, cut.low_end, LARGEST + 1 if cut.high == LARGEST else cut.high, cut.high_start

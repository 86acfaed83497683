"""Mixes on the CPU: threads that run the compiled kernels on parts of a tensor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merge.kernels.memory import BF16, F16, F32
from evomerge.merge.kernels.mixing import mix as mix_kernel
from evomerge.merge.mixes.masks import kept_below
from evomerge.merge.mixes.mix import LARGEST, Cut, DeviceCut, Mix, Term
from evomerge.merge.mixes.torch_mix import least_vote, vote_of

KINDS = {torch.float32: F32, torch.bfloat16: BF16, torch.float16: F16}
"""The kernels' codes of dtypes."""

PART = 1 << 16
"""Elements; less is not worth another thread."""

MOST = 16
"""Inputs that are read side by side: more streams are slower than several passes, and take longer to compile."""

_BLOCK = 1 << 15  # elements of a sum of many inputs, which stay in the second-level cache
_EVERY = 2**31 - 1  # the largest random number
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


class MixCall:
    """A mix ready to be carried out, by any thread and in any parts.

    Args:
        count: elements.
        begin: where in the tensor they begin.
        settings: of the kernel, before the range.
    """

    __slots__ = ("_settings", "begin", "count")

    def __init__(self, count: int, begin: int, settings: tuple[Any, ...]) -> None:
        self.count, self.begin, self._settings = count, begin, settings

    def __call__(self, begin: int, end: int) -> int:
        """Carry out elements `begin` to `end` of `count`; returns whether one is not finite."""
        bad: int = mix_kernel(*self._settings, self.begin + begin, self.begin + end)
        return bad


class LongSumCall(MixCall):
    """A weighted sum of more than `MOST` inputs: block by block, so many of them at a time behind what came before.

    The additions are those of one pass, in their order: so are the bits.
    """

    __slots__ = ()

    def __call__(self, begin: int, end: int) -> int:
        """See `MixCall`."""
        inputs, kinds, weights, *settings = self._settings
        divisor, scale, out, kind, stream, direct = settings[-6:]
        room = np.empty(_BLOCK + 16, np.float32)
        sums = (room.ctypes.data + 63) // 64 * 64
        direct = direct and kind == F32
        bad = 0
        for start in range(self.begin + begin, self.begin + end, _BLOCK):
            stop, held = min(start + _BLOCK, self.begin + end), sums - 4 * start
            done = 0
            while done < len(inputs):
                before = ((held,), (F32,), (1.0,)) if done else ((), (), ())
                upto = done + MOST - len(before[0])
                part = [(*own, *given[done:upto]) for own, given in zip(before, (inputs, kinds, weights), strict=True)]
                done, is_last = upto, upto >= len(inputs)
                last = divisor, scale, out, kind, stream if direct else None, direct
                more = last if is_last else (None, 1.0, held, F32, None, kinds.count(F32) == len(kinds))
                bad |= mix_kernel(*part, None, more[3], None, None, None, None, None, *more, start, stop)
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
    used = [i for i, term in enumerate(mix.terms) if term.is_used]
    if not used:
        return None
    origin = base if mix.differences else None
    first = out.data_ptr() - begin * out.dtype.itemsize  # where the whole tensor would lie
    terms, kind = [mix.terms[i] for i in used], KINDS[out.dtype]
    sources = [inputs[i] for i in used]
    kinds = tuple([KINDS[source.dtype] for source in sources])
    base_kind = KINDS[origin.dtype] if origin is not None else kind
    direct = kind != F16 and base_kind == kind and kinds.count(kind) == len(kinds)
    votes = [vote_of(term) for term in terms] if mix.elect else None
    settings = (
        tuple([source.data_ptr() for source in sources]),
        kinds,
        tuple([float(term.weight) for term in terms]),
        origin.data_ptr() if origin is not None else None,
        base_kind,
        True if direct and kind == BF16 else None,
        np.array([cut_row(term.cut) for term in terms], np.int64) if any(term.cut for term in terms) else None,
        _masks(terms, [keys[i] for i in used]) if any(term.density is not None for term in terms) else None,
        np.array(votes, np.float32) if votes else None,
        least_vote(votes) if votes and mix.normalize else None,
        float(mix.divisor) if not mix.elect and mix.divisor != 1 else None,
        float(mix.scale),
        first,
        kind,
        True if direct and out.nbytes >= _STREAM and first % 32 == 0 else None,
        direct,
    )
    plain = origin is None and not mix.elect and not any(term.cut or term.density is not None for term in terms)
    return (LongSumCall if plain and len(used) > MOST else MixCall)(out.numel(), begin, settings)


def _masks(terms: Sequence[Term], keys: Sequence[int]) -> NDArray[np.uint32]:
    """Keys and bounds as the kernels take them."""
    rows = []
    for term, key in zip(terms, keys, strict=True):
        last = mask_last(term.density)
        rows.append((0, 0, last) if last == _EVERY else (key & 0xFFFFFFFF, key >> 32, last & 0xFFFFFFFF))
    return np.array(rows, np.uint32)


def mask_last(density: float | None) -> int:
    """The largest random number of an element that stays; -1 for none."""
    return _EVERY if density is None or density >= 1 else kept_below(density) - 1


def cut_row(cut: Cut | DeviceCut | None) -> tuple[int, int, int, int]:
    """A cut as the kernels take it."""
    assert not isinstance(cut, DeviceCut), "it is of another device"
    if cut is None:
        return -1, 0, LARGEST + 1, 0
    # Nothing finite is above the largest: infinities stay, to be found in the result.
    return cut.low, cut.low_end, LARGEST + 1 if cut.high == LARGEST else cut.high, cut.high_start

"""Sums over whole tensors on GPUs in one pass, added up in the order of the CPU's kernels (`sums`)."""

from __future__ import annotations

import triton
import triton.language as tl

from evomerge.merge.kernels.triton_mixing import _cut, _floats, _long, _numbers, _word


@triton.jit
def _until(size, start, split):
    """How far a block goes that must not go beyond a split."""
    return tl.where((start < split) & (split < start + size), split - start, size)


@triton.jit(do_not_specialize=["count"])
def magnitudes(
    task,
    base,
    result,
    count,
    cuts,
    mask,
    BAND: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of the magnitudes of a task vector, before and after a cut and a mask: a chunk for each program.

    Blocks begin anew where a cut changes its rule. What is ``None`` is left out of the code.

    Args:
        task, base: the first elements; bfloat16 as int16.
        result: float64 of shape ``(2, chunks, BLOCK)``: sums of the elements with the same place in their blocks.
        count: elements, as `triton_mixing.setting` gives it, like the numbers in `mask`.
        cuts: where the four fields of a `mix.Cut` are, int64; or ``None``.
        mask: the lower and the upper word of the key and the largest number that stays; or ``None``.
        BAND: whether the cut drops the largest magnitudes too.
        CHUNK, BLOCK: elements.
    """
    chunk = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    start = chunk * CHUNK
    end = tl.minimum(start + CHUNK, _long(count))
    whole = tl.zeros((BLOCK,), tl.float64)
    kept = tl.zeros((BLOCK,), tl.float64)
    if cuts is not None:
        low, high = tl.load(cuts).to(tl.int32), tl.load(cuts + 2).to(tl.int32)
        low_end, high_start = tl.load(cuts + 1), tl.load(cuts + 3)
    while start < end:
        size = tl.minimum(end - start, BLOCK)
        if cuts is not None:
            size = _until(_until(size, start, low_end), start, high_start)
        inside = lane < size
        part = _floats(task + start, lane, inside, False) - _floats(base + start, lane, inside, False)
        whole += tl.abs(part).to(tl.float64)
        if cuts is not None:
            part = _cut(part, start, lane, low, low_end, high, high_start, BAND, BLOCK)
        if mask is not None:
            part = tl.where(_numbers(start, lane, mask[0], mask[1]) <= _word(mask[2]), part, 0.0)
        kept += tl.abs(part).to(tl.float64)
        start += size
    place = result + chunk * BLOCK + lane
    tl.store(place, whole)
    tl.store(place + tl.num_programs(0).to(tl.int64) * BLOCK, kept)

"""Mixes over memory, in one pass: in pieces within which masks and cuts follow one rule."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.merge.kernels.lines import STEP, mix_lines, where_given
from evomerge.merge.kernels.memory import infinite_from, keep, read, width, write
from evomerge.merge.kernels.passes import limits
from evomerge.utils.compiling import compiled

BLOCK = 512
"""Elements that are converted at a time, so that they stay in the first-level cache; results do not depend on it."""

_WRAPS = 1 << 32  # elements: masks begin anew there
_U = np.uint32


@compiled
def mix(
    inputs: Any,
    kinds: Any,
    weights: Any,
    base: Any,
    base_kind: int,
    half: Any,
    cuts: Any,
    masks: Any,
    votes: Any,
    least: Any,
    divisor: Any,
    scale: Any,
    out: int,
    out_kind: int,
    stream: Any,
    direct: bool,
    begin: int,
    end: int,
) -> int:
    """Carry a mix out on elements `begin` to `end`; returns whether a result is not finite.

    Compiled anew for other numbers of inputs and for other arguments that are ``None``.

    Args:
        inputs, base, out: addresses, a tuple of them for the first; `base` may be ``None``.
        kinds, base_kind, out_kind: their dtype codes.
        weights: one for each input, to be rounded to float32 like `least`, `divisor` and `scale`.
        half: ``None`` unless all is bfloat16.
        cuts: int64 of shape ``(inputs, 4)``: the fields of `mix.Cut`; or ``None``.
        masks, votes, least, divisor, scale: as for `lines.mix_lines`; the first two as arrays, which the caller keeps.
        stream: ``None`` to write through the cache; otherwise `out` is a multiple of 32.
        direct: whether everything is of one dtype that `mix_lines` takes: what is not is converted block by block.
    """
    count = len(weights)
    over = _U(0x80000000 - infinite_from(out_kind))
    scratch = np.empty((0 if direct else count + 2) * BLOCK + 16, np.float32)
    first = (scratch.ctypes.data + 63) // 64 * 64
    row = 4 * BLOCK
    addresses = np.empty(count, np.int64)
    bounds = np.empty(2 * count, np.float32)
    at_masks, at_votes = np.int64(0), np.int64(0)
    if masks is not None:
        at_masks = np.int64(masks.ctypes.data)
    if votes is not None:
        at_votes = np.int64(votes.ctypes.data)
    seen = _U(0)
    start = begin
    while start < end:
        size = min(end - start, _WRAPS - start % _WRAPS)
        if not direct:
            size = min(size, BLOCK)
        if cuts is not None:
            for i in range(count):  # on either side of where ties are cut the bounds differ
                for place in (cuts[i, 1], cuts[i, 3]):
                    if start < place < start + size:
                        size = place - start
                bounds[i], bounds[count + i] = limits(cuts[i], start)
        if start % STEP:  # whole lines follow
            size = min(size, STEP - start % STEP)
        target, origin = first, np.int64(0)
        if direct:
            target = out + start * width(out_kind)
            for i in range(count):
                addresses[i] = inputs[i] + start * width(kinds[i])
        else:
            for i in range(count):
                addresses[i] = read(inputs[i], kinds[i], start, size, first + (2 + i) * row)
        if base is not None:
            origin = base + start * width(base_kind) if direct else read(base, base_kind, start, size, first + row)
        seen |= mix_lines(
            np.int64(addresses.ctypes.data),
            weights,
            where_given(base, origin),
            half,
            where_given(cuts, np.int64(bounds.ctypes.data)),
            where_given(masks, at_masks),
            where_given(votes, at_votes),
            least,
            divisor,
            scale,
            np.int64(start),
            np.int64(target),
            stream,
            over,
            np.int64(size),
        )
        if not direct:
            write(target, out, out_kind, start, size)
        start += size
    return np.int64(seen >> _U(31)) + keep(scratch) + keep(addresses) + keep(bounds)

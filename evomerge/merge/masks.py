"""Random masks that are the same bits on every device: a counter-based generator.

The number of element ``e`` of a tensor is the upper 31 bits of a half of SplitMix64 (Steele, Lea and Flood, 2014) at
counter ``e // 2``, of the low half for even ``e``. The generator's start is a hash of the recipe's seed, the
model's identity and the tensor's name, so that a mask depends on nothing else: not on the device, the block
size, the order of merging, nor on other tensors.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's increment
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # and its finaliser
_MASK64 = (1 << 64) - 1
_CHUNK = 1 << 16  # elements hashed at a time: temporaries stay in the cache


def mask_key(seed: int, identity: str, tensor: str) -> int:
    """The generator's 64-bit start for one tensor of one model."""
    digest = hashlib.sha256(f"{seed}\n{identity}\n{tensor}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def drop_(task: torch.Tensor, key: int, density: float, start: int) -> None:
    """Set the elements of a flat float32 block to zero in place, each but with probability `density`.

    Args:
        task: elements ``start`` and following of a tensor.
        key: the tensor's `mask_key`.
        density: probability that an element stays.
        start: index of the block's first element in its tensor.
    """
    if density >= 1:
        return
    if density <= 0:
        task.zero_()
    elif task.device.type == "cpu":
        # Numbers below the bound leave a sign bit; spread over the word it keeps the element's bits.
        kept = uniform_numpy(key, start, task.numel()).view(np.int32)
        np.subtract(kept, np.int32(kept_below(density)), out=kept)
        np.right_shift(kept, np.int32(31), out=kept)
        bits = task.numpy().view(np.int32)
        np.bitwise_and(bits, kept, out=bits)
    else:
        task.masked_fill_(uniform_torch(key, start, task.numel(), task.device) >= kept_below(density), 0)


def kept_below(density: float) -> int:
    """An element is kept when its number is below this."""
    return min(int(density * 2**31), 2**31 - 1)


@functools.cache
def _steps() -> NDArray[np.uint64]:
    """What SplitMix64 adds to its start for the counters of a chunk."""
    steps = np.arange(1, _CHUNK // 2 + 2, dtype=np.uint64) * np.uint64(_GOLDEN)
    steps.flags.writeable = False
    return steps


def uniform_numpy(key: int, start: int, count: int) -> NDArray[np.uint32]:
    """The numbers of ``count`` elements from ``start``: uniform below 2**31, of shape ``(count,)``."""
    numbers = np.empty(count, dtype=np.uint32)
    scratch = np.empty(min(_CHUNK, count) // 2 + 2, dtype=np.uint64)
    done = 0
    while done < count:
        counter, odd = divmod(start + done, 2)
        take = min(_CHUNK - odd, count - done)
        pairs = (take + odd + 1) // 2
        z, t = _steps()[:pairs] + np.uint64((key + counter * _GOLDEN) & _MASK64), scratch[:pairs]
        for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 0)):
            np.right_shift(z, np.uint64(shift), out=t)
            np.bitwise_xor(z, t, out=z)
            if factor:
                np.multiply(z, np.uint64(factor), out=z)
        halves = z.astype("<u8", copy=False).view("<u4")
        np.right_shift(halves[odd : odd + take], np.uint32(1), out=numbers[done : done + take])
        done += take
    return numbers


def uniform_torch(key: int, start: int, count: int, device: torch.device) -> torch.Tensor:
    """The same numbers as int32 on a device, of shape ``(count,)``."""
    counter, odd = divmod(start, 2)
    pairs = (count + odd + 1) // 2
    z = torch.arange(1, pairs + 1, dtype=torch.int64, device=device)
    z.mul_(_signed(_GOLDEN)).add_(_signed(key + counter * _GOLDEN))
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 0)):
        # int64 shifts copy the sign, so the bits it brings in are cleared.
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1))
        if factor:
            z.mul_(_signed(factor))
    return (z.view(torch.int32)[odd : odd + count] >> 1).bitwise_and_(2**31 - 1)


def _signed(number: int) -> int:
    """A 64-bit pattern as the signed integer that torch takes."""
    number &= _MASK64
    return number - (1 << 64) if number >> 63 else number

"""Random masks that are the same bits on every device: a counter-based generator.

The uniform number of element ``e`` of a tensor is a 32-bit half of SplitMix64 (Steele, Lea and Flood, 2014) at
counter ``e // 2``, the low half for even ``e``. The generator's start is a hash of the recipe's seed, the
model's identity and the tensor's name, so that a mask depends on nothing else: not on the device, the block
size, the order of merging, nor on other tensors.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's increment
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # and its finaliser
_MASK64 = (1 << 64) - 1
_CHUNK = 1 << 16  # elements hashed at a time: temporaries stay in the cache


def mask_key(seed: int, identity: str, tensor: str) -> int:
    """The generator's 64-bit start for one tensor of one model."""
    digest = hashlib.sha256(f"{seed}\n{identity}\n{tensor}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def keep_mask(key: int, density: float, start: int, count: int, device: torch.device) -> torch.Tensor:
    """Which of the elements ``start`` to ``start + count`` are kept, each with probability `density`.

    Returns:
        A boolean tensor of shape ``(count,)`` on `device`.
    """
    if density >= 1:
        return torch.ones(count, dtype=torch.bool, device=device)
    if density <= 0:
        return torch.zeros(count, dtype=torch.bool, device=device)
    below = int(density * 2**32)  # kept when the 32-bit number is less
    if device.type == "cpu":
        return torch.from_numpy(uniform_numpy(key, start, count) < np.uint32(below))
    return uniform_torch(key, start, count, device) < below - 2**31


def uniform_numpy(key: int, start: int, count: int) -> np.ndarray:
    """The uniform 32-bit numbers of ``count`` elements from ``start``, as uint32 of shape ``(count,)``."""
    numbers = np.empty(count, dtype=np.uint32)
    scratch = np.empty(_CHUNK // 2 + 1, dtype=np.uint64)
    steps = np.arange(1, _CHUNK // 2 + 2, dtype=np.uint64) * np.uint64(_GOLDEN)
    done = 0
    while done < count:
        first = start + done
        counter, odd = divmod(first, 2)
        take = min(_CHUNK - odd, count - done)
        pairs = (take + odd + 1) // 2
        z, t = steps[:pairs] + np.uint64((key + counter * _GOLDEN) & _MASK64), scratch[:pairs]
        for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 0)):
            np.right_shift(z, np.uint64(shift), out=t)
            np.bitwise_xor(z, t, out=z)
            if factor:
                np.multiply(z, np.uint64(factor), out=z)
        numbers[done : done + take] = z.astype("<u8", copy=False).view("<u4")[odd : odd + take]
        done += take
    return numbers


def uniform_torch(key: int, start: int, count: int, device: torch.device) -> torch.Tensor:
    """The same numbers less 2**31, as int32 of shape ``(count,)``: torch compares signed integers only."""
    counter, odd = divmod(start, 2)
    pairs = (count + odd + 1) // 2
    z = torch.arange(1, pairs + 1, dtype=torch.int64, device=device)
    z.mul_(_signed(_GOLDEN)).add_(_signed(key + counter * _GOLDEN))
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 0)):
        # int64 shifts copy the sign, so the bits it brings in are cleared.
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1))
        if factor:
            z.mul_(_signed(factor))
    return z.view(torch.int32)[odd : odd + count].bitwise_xor(-(2**31))


def _signed(number: int) -> int:
    """A 64-bit pattern as the signed integer that torch takes."""
    number &= _MASK64
    return number - (1 << 64) if number >> 63 else number

"""Random masks that are the same bits on every device: a counter-based generator.

The number of element ``e`` of a tensor is a keyed hash of ``e``: the 32-bit finaliser triple32 (C. Wellons,
"Prospecting for Hash Functions", 2018) of ``e`` plus the key's lower word, the upper word added before the second
round; of the result, the upper 31 bits. Of its words a vector holds twice as many as of SplitMix64's. The key is a hash
of the recipe's seed, the model's identity and the tensor's name, so that a mask depends on nothing else: not on the
device, the block size, the order of merging, nor on other tensors.
"""

from __future__ import annotations

import hashlib

import torch

from evomerge.merge.kernels.triple32 import ROUNDS, WRAP

_MASK32 = (1 << 32) - 1


def mask_key(seed: int, identity: str, tensor: str) -> int:
    """The generator's 64-bit key for one tensor of one model."""
    digest = hashlib.sha256(f"{seed}\n{identity}\n{tensor}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def drop_(task: torch.Tensor, key: int, density: float, start: int | torch.Tensor) -> None:
    """Set the elements of a flat float32 block to zero in place, each but with probability `density`.

    Args:
        task: elements ``start`` and following of a tensor.
        key: the tensor's `mask_key`.
        density: probability that an element stays.
        start: index of the block's first element in its tensor; int64 of no dimension where only the device knows it.
    """
    if density < 1:
        task.masked_fill_(uniform(key, start, task.numel(), task.device) >= kept_below(density), 0)


def kept_below(density: float) -> int:
    """An element is kept when its number is below this."""
    return max(0, min(int(density * 2**31), 2**31 - 1))


def drop_each_(task: torch.Tensor, key: int, bounds: torch.Tensor, start: int) -> None:
    """`drop_` where every element has a probability of its own.

    Args:
        task: elements ``start`` and following of a tensor, flat float32; written to.
        key: the tensor's `mask_key`.
        bounds: what their numbers must not exceed to stay (`kept_up_to`): int32, on the device of `task`.
        start: index of the block's first element in its tensor.
    """
    task.masked_fill_(uniform(key, start, task.numel(), task.device) > bounds, 0)


def restore_(task: torch.Tensor, bounds: torch.Tensor) -> None:
    """Divide elements by the probability of staying that their bounds mean, exactly, in place: float32, like int32.

    Where it is zero nothing is left to divide.
    """
    task.div_(bounds.float().add_(1).mul_(2.0**-31).clamp_min_(2.0**-31))


def kept_up_to(probabilities: torch.Tensor) -> torch.Tensor:
    """The bounds of `drop_each_`: int32 for float64 probabilities to stay, to 2**-31; -1 for none, the largest for one.

    A bound is one less than that of `drop_`, so that all of them fit a signed word.
    """
    return probabilities.clamp(0, 1).mul_(2.0**31).floor_().sub_(1).to(torch.int32)


def uniform(key: int, start: int | torch.Tensor, count: int, device: torch.device) -> torch.Tensor:
    """The numbers of ``count`` elements from ``start``: int32, uniform below 2**31, of shape ``(count,)``."""
    index = torch.arange(count, dtype=torch.int64, device=device).add_(start)
    upper = (index >> 32).mul_(WRAP).add_(key >> 32)
    x = _word(index.add_(key & _MASK32))
    for number, (shift, factor) in enumerate(ROUNDS):
        if number == 1:
            x.add_(_word(upper))
        _fold_(x, shift).mul_(_signed(factor))
    _fold_(x, 14)
    return (x >> 1).bitwise_and_(2**31 - 1)


def _fold_(x: torch.Tensor, shift: int) -> torch.Tensor:
    """``x ^= x >> shift`` of unsigned words: shifts of int32 copy the sign, so the bits it brings in are cleared."""
    return x.bitwise_xor_((x >> shift).bitwise_and_((1 << (32 - shift)) - 1))


def _word(numbers: torch.Tensor) -> torch.Tensor:
    """The lower words of int64 numbers, as int32."""
    return numbers.bitwise_and_(_MASK32).sub_(numbers >> 31 << 32).to(torch.int32)


def _signed(number: int) -> int:
    """A 32-bit pattern as the signed integer that torch takes."""
    return number - (1 << 32) if number >> 31 else number

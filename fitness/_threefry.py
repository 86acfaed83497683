"""The random numbers of JAX, to start from the very networks that a published experiment started from.

Threefry-2x32 with 20 rounds: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
How JAX up to 0.4 lays out counters (its option ``jax_threefry_partitionable`` was off then) is documented in its
design notes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfinv

Words = NDArray[np.uint32]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def key(seed: int) -> Words:
    """The generator's key of a seed below 2^32."""
    return np.array([0, seed], np.uint32)


def split(parent: Words, count: int) -> Words:
    """`count` keys that follow from one: shape ``(count, 2)``."""
    return bits(parent, 2 * count).reshape(count, 2)


def bits(of: Words, count: int) -> Words:
    """`count` random 32-bit words."""
    counters = np.zeros(count + count % 2, np.uint32)
    counters[:count] = np.arange(count, dtype=np.uint32)
    left, right = np.split(counters, 2)
    return np.concatenate(threefry(of, left, right))[:count]


def normal(of: Words, count: int) -> NDArray[np.float32]:
    """`count` float32 numbers of the standard normal distribution."""
    ones = (bits(of, count) >> np.uint32(9) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = np.maximum(ones * (np.float32(1) - low) + low, low)
    result: NDArray[np.float32] = np.float32(np.sqrt(2)) * erfinv(uniform)
    return result


def threefry(of: Words, left: Words, right: Words) -> tuple[Words, Words]:
    """The block function on pairs of words."""
    schedule = [of[0], of[1], of[0] ^ of[1] ^ np.uint32(_PARITY)]
    with np.errstate(over="ignore"):  # modulo 2^32 is what is meant
        x, y = left + schedule[0], right + schedule[1]
        for group in range(5):
            for turn in _ROTATIONS[group % 2]:
                x = x + y
                y = (y << np.uint32(turn) | y >> np.uint32(32 - turn)) ^ x
            x = x + schedule[(group + 1) % 3]
            y = y + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x, y

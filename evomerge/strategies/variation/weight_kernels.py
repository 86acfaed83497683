"""The compiled loops over the weights of a child: cheap beside the evaluation of a small network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from evomerge.strategies.variation.crossover import factors_of, omega_of
from evomerge.utils.compiling import compiled

_omega_of, _factors_of = compiled(omega_of), compiled(factors_of)
_BLOCK = 512  # elements whose products are summed in the first-level cache


@compiled
def breed(
    a: Any,
    b: Any,
    chromosomes: Any,
    draws: Any,
    split: bool,
    curved: bool,
    whole: bool,
    noise: Any,
    key: Any,
    bound: Any,
    out: Any,
) -> bool:
    """Make a child as `crossover.child_of` does, and add noise to it.

    Args:
        a, b: the parents, float32.
        chromosomes: where each begins and ends, int64 of shape ``(chromosomes, 2)``; they cover the parents.
        draws: the mix of each, and then where it is split, as a share of its length: float64 from 0 to below 1.
        split: whether it is split.
        curved: whether the path is the arc, not the line.
        whole: whether the angle is that of the whole parents, not of each segment.
        noise: as `fill_noise` takes it; none where it is empty.
        key: the same.
        bound: float32; what lies outside ``[-bound, bound]``, NaN as well, is reported.
        out: receives the child, float32.

    Returns:
        Whether all lies inside.
    """
    fill_noise(out, noise, key)
    all_omega = _angle(a, b) if curved and whole else math.nan
    inside = True
    for number in range(len(chromosomes)):
        begin, end, mix = chromosomes[number, 0], chromosomes[number, 1], draws[number]
        at = min(begin + np.int64(draws[len(chromosomes) + number] * (end - begin)), end - 1) if split else end
        for left, right, share in ((begin, at, mix), (at, end, 1.0 - mix)):
            if left < right:
                first, second, child = a[left:right], b[left:right], out[left:right]
                omega = _angle(first, second) if curved and not whole else all_omega
                of_first, of_second = _factors_of(share, omega)
                inside &= _add_mix(first, second, np.float32(of_first), np.float32(of_second), bound, child)
    return inside


@compiled
def fill_noise(out: Any, noise: Any, key: Any) -> None:
    """Fill an array with values drawn from a table, or with zeros where it is empty.

    Drawn by the generator SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014): it
    takes a fifth of the time of numpy's, and what it needs is a number, not an array, of the search's own generator.

    Args:
        out: float32.
        noise: 4,096 values, all equally likely, float32.
        key: where the generator starts, uint64.
    """
    if len(noise) == 0:
        out[:] = np.float32(0)
        return
    state, word = key, key
    for i in range(len(out)):
        if i % 4 == 0:
            state += np.uint64(0x9E3779B97F4A7C15)
            word = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            word ^= word >> np.uint64(31)
        out[i] = noise[word >> np.uint64(52)]
        word <<= np.uint64(12)


@compiled
def _add_mix(a: Any, b: Any, first: Any, second: Any, bound: Any, out: Any) -> bool:
    """Add ``first * a + second * b``; returns whether what comes out is within the bound."""
    outside = np.uint32(0)
    for i in range(len(out)):
        value = first * a[i] + second * b[i] + out[i]
        out[i] = value
        outside |= np.uint32((not (value >= -bound)) | (not (value <= bound)))
    return outside == 0


@compiled
def _angle(a: Any, b: Any) -> float:
    """Between two arrays, as `crossover.omega_of` has it."""
    aa = bb = ab = 0.0
    room = np.empty((3, _BLOCK), np.float32)
    for begin in range(0, len(a), _BLOCK):
        first, second = a[begin : begin + _BLOCK], b[begin : begin + _BLOCK]
        for j in range(len(first)):
            room[0, j] = first[j] * first[j]
            room[1, j] = second[j] * second[j]
            room[2, j] = first[j] * second[j]
        count = len(first)
        while count > 1:  # by halves: with vectors
            half = (count + 1) // 2
            for row in room:
                low, high = row[: count - half], row[half:count]
                for j in range(len(low)):
                    low[j] += high[j]
            count = half
        aa, bb, ab = aa + room[0, 0], bb + room[1, 0], ab + room[2, 0]
    return _omega_of(aa, bb, ab)

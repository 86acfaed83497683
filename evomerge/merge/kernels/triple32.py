"""Constants of the generator of random masks: the 32-bit finaliser triple32 (C. Wellons, 2018).

Here and not with the masks: numba compiles a kernel anew when a file of its own folder has changed, and only then.
"""

from __future__ import annotations

ROUNDS = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB))
"""Shift and factor of the rounds; a last shift of 14 follows."""

WRAP = 0x9E3779B9
"""Added to the key's upper word for every 2**32 elements that came before."""

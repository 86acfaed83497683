"""Compiles the kernels for GPUs without one and prints as JSON what the machine code of each mix does.

A script of its own: whether Triton interprets or compiles is decided when it is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from evomerge.merge.kernels import triton_mixing, triton_sums
from evomerge.merge.mixes import triton_mix, triton_statistics
from evomerge.merge.mixes.mix import Cut, DeviceCut, Mix, Pruning, Term

COUNT = 4 * triton_mixing.BLOCK


class Absent:
    """A GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled:
    """Takes the place of the kernel: compiles for what it would be launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.made: list[Any] = []

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def compile_(*arguments: Any, **options: Any) -> None:
            self.made.append(self.kernel.warmup(*arguments, grid=grid, **options))

        return compile_


def forms(weight: float) -> dict[str, Mix]:
    """The mixes of the methods, by name and number of inputs."""
    cut = Cut(0x3C000000, 1000)
    both = Cut(0x3C000000, 1000, 0x3F000000, 16)
    there = DeviceCut(torch.zeros(4, dtype=torch.int64), True)
    ranks = torch.zeros(COUNT, dtype=torch.int16)
    pruning = Pruning(ranks, torch.zeros(COUNT, dtype=torch.int32), True)

    def terms(count: int, **options: Any) -> tuple[Term, ...]:
        return tuple(Term(weight + i, **options) for i in range(count))

    return {
        "linear, 3 sources": Mix(terms(3), divisor=weight + 0.5),
        "slerp": Mix(terms(2)),
        "task arithmetic, base + 2": Mix(terms(2), True),
        "TIES, base + 2": Mix(terms(2, cut=cut), True, True, True),
        "breadcrumbs, base + 2": Mix(terms(2, cut=both), True),
        "TIES, found there": Mix(
            tuple(Term(torch.tensor(weight), cut=there, vote=weight) for _ in range(2)), True, True, True
        ),
        "DARE-linear, base + 2": Mix(terms(2, density=0.3), True),
        "DARE-TIES, base + 3": Mix(terms(3, density=0.3), True, True),
        "DELLA, base + 2": Mix(terms(2, pruning=pruning), True, True, True),
    }


def moved(ptx: str, instruction: str) -> float:
    """Bytes an element that all unconditional accesses to global memory move."""
    threads = 32 * triton_mixing.OPTIONS["num_warps"]
    total = 0
    for vector, width in re.findall(rf"{instruction}\.global(?:\.v(\d))?\.b(\d+)", ptx):
        total += int(vector or 1) * int(width) // 8
    return total * threads / triton_mixing.BLOCK


def described(capability: int, dtype: torch.dtype, name: str, kernel: Compiled) -> dict[str, Any]:
    """What a compiled kernel does."""
    ptx = kernel.made[0].asm["ptx"]
    return {
        "capability": capability,
        "dtype": str(dtype).removeprefix("torch."),
        "mix": name,
        "kernels": len({id(made) for made in kernel.made}),
        "arithmetic": sorted(set(re.findall(r"\b((?:fma|mad|mul|add|sub|div|rcp)\.\S*f(?:32|64))\b", ptx))),
        "read": moved(ptx, "ld"),
        # Of the words that say what is not finite none is written in general.
        "written": moved(ptx, "st") - 4,
    }


def main() -> None:
    """Print, by capability, dtype and mix: arithmetic instructions, bytes an element, and kernels compiled."""
    found = []
    for capability in (80, 90):
        driver.set_active(Absent(capability))
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for name in forms(1.0):
                kernel = triton_mix.mix_kernel = Compiled(triton_mixing.mix)
                for weight, keys in ((0.3, (5, 7, 9)), (1.0, (1, 16, 2**64 - 1))):
                    mix = forms(weight)[name]
                    tensors = [torch.zeros(COUNT, dtype=dtype) for _ in range(len(mix.terms) + 1)]
                    triton_mix.mix_(tensors[0], mix, tensors[1:], tensors[0], keys)
                found.append(described(capability, dtype, name, kernel))
            kernel = triton_statistics.magnitudes = Compiled(triton_sums.magnitudes)
            for keys in ((5,), (2**64 - 1,)):
                tensors = [torch.zeros(COUNT, dtype=dtype) for _ in range(2)]
                statistics = triton_statistics.TritonStatistics(tensors[:1], tensors[1], (COUNT,), keys)
                statistics._magnitudes(0, Cut(0x3C000000, keys[0] % COUNT, 0x3F000000, 16), 0.3)
            found.append(described(capability, dtype, "sums of magnitudes", kernel))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""How long what methods make of the sources alone will take: measured on small matrices, and scaled."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.config.schema import Config
from evomerge.merge.execution.notes_memory import DerivedTensor, derived_tensors
from evomerge.merge.methods.derived import Derived
from evomerge.merge.planning.slice_plan import Plan
from evomerge.models.pool import Pool
from evomerge.session.memory import MemoryEstimate, sample_plans
from evomerge.session.parts import Parts

_SIDES = (48, 96, 192, 384)  # of matrices that are measured, until one takes long
_TURNS = 5
_LONG = 0.12  # seconds; the next takes up to eight times as long


@dataclass(frozen=True)
class DerivedTime:
    """What making tensors of the sources takes.

    Attributes:
        methods: that do, by name.
        tensors: that are made once.
        seconds: of one thread, or of the GPU, for all of them.
        again: for every later candidate, of what differs from candidate to candidate, or finds no room.
        threads: that make them side by side.
    """

    methods: tuple[str, ...]
    tensors: int
    seconds: float
    again: float
    threads: int


def estimate_derived(config: Config, parts: Parts, memory: MemoryEstimate) -> DerivedTime | None:
    """What the methods of a search will take for a pool whose weights nobody reads; ``None`` where none makes anything.

    ``None`` also where it would be made on a GPU that is not here.
    """
    assert parts.pool is not None, "memory was estimated"
    if not memory.on_host and not torch.cuda.is_available():
        return None
    plans = sample_plans(config, parts, parts.pool)
    kept = sum(part.nbytes for part in memory.parts if part.name == "derived") if memory.on_host else None
    device = torch.device("cpu" if memory.on_host else "cuda")
    settings: Any = config.evaluator
    threads = settings.get("threads") or settings.get("cpus_per_worker") or torch.get_num_threads()
    return derived_time(plans, parts.pool, kept, device, int(threads) if memory.on_host else 1)


def derived_time(
    plans: Sequence[Plan],
    pool: Pool,
    kept: int | None,
    device: torch.device,
    threads: int,
) -> DerivedTime | None:
    """The time for some candidates of a search.

    Args:
        plans: of them; what two of them make is taken for what lasts.
        pool: the source models.
        kept: bytes of what is made that find room; all for ``None``.
        device: where it is made.
        threads: that make it side by side on the CPU.
    """
    each = [own for plan in plans if (own := {made.of: made for made in derived_tensors(plan, pool)})]
    if not each:
        return None
    asked = Counter(of for own in each for of in own)
    lasting = {of: made for own in each for of, made in own.items() if asked[of] > 1 or len(each) == 1}
    last = each[-1]
    rates: dict[Hashable, tuple[float, float]] = {}

    def seconds(made: DerivedTensor) -> float:
        derived = made.method.derived
        assert derived is not None
        kind = made.method.spec.name, derived.variant(made.values), made.inputs
        if kind not in rates:
            rates[kind] = measured(derived, made.values, made.inputs, device)
        by_element, by_product = rates[kind]
        count = math.prod(made.shape)
        return by_element * count + by_product * count * (min(made.shape) if len(made.shape) == 2 else 0)

    once = sum(seconds(made) for made in lasting.values())
    anew = sum(seconds(made) for of, made in last.items() if of not in lasting)
    need = sum(made.nbytes for made in lasting.values())
    homeless = max(0.0, 1 - kept / need) if kept is not None and need else 0.0
    names = dict.fromkeys(made.method.spec.name for own in each for made in own.values())
    return DerivedTime(tuple(names), len(lasting), once, anew + homeless * once, threads)


def measured(derived: Derived, values: Mapping[str, Any], inputs: int, device: torch.device) -> tuple[float, float]:
    """Seconds of an element, and of one times the shorter side of its matrix, by making what is of small matrices.

    Decompositions of 384 rows take as much of each operation as those of 1536, to a fifth; larger ones are scaled.
    """
    generator = torch.Generator().manual_seed(0)
    taken: list[tuple[int, float]] = []
    for side in _SIDES:
        base = torch.randn(side, side, generator=generator)
        tasks = [(base + 0.01 * torch.randn(side, side, generator=generator)).to(device) for _ in range(inputs)]
        base = base.to(device)
        turns = [_timed(derived, values, tasks, base)]
        while len(turns) < _TURNS and sum(turns) < _LONG:  # a machine that does other things takes longer, never less
            turns.append(_timed(derived, values, tasks, base))
        taken.append((side, min(turns)))
        if min(turns) > _LONG:
            break
    side, whole = taken[-1]
    if not derived.cubic:
        return whole / side**2, 0.0
    small, less = taken[0]
    if small == side:
        return 0.0, whole / side**3
    # whole = a side^2 + b side^3, and so for the small one, which is far from it: neither is measured well.
    by_product = max(0.0, (whole / side**2 - less / small**2) / (side - small))
    return whole / side**2 - by_product * side, by_product


def _timed(derived: Derived, values: Mapping[str, Any], tasks: Sequence[torch.Tensor], base: torch.Tensor) -> float:
    """Seconds that one matrix takes: of this thread, whatever else the machine does, or of a GPU."""
    if base.device.type != "cpu":
        torch.cuda.synchronize()
        start = time.perf_counter()
        derived.make(values, tasks, base, tuple(base.shape))
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.thread_time()
    derived.make(values, tasks, base, tuple(base.shape))
    return time.thread_time() - start

"""How long what methods make of the sources alone will take: measured on small matrices, and scaled."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.config.schema import Config
from evomerge.merge.execution.noted_statistics import NotedStatistics
from evomerge.merge.execution.notes import Notes
from evomerge.merge.execution.notes_memory import DerivedTensor, derived_tensors
from evomerge.merge.execution.scope_values import ScopeValues
from evomerge.merge.execution.scopes import Members
from evomerge.merge.methods.derived import Derived
from evomerge.merge.planning.slice_plan import Plan
from evomerge.models.pool import Pool
from evomerge.session.memory import MemoryEstimate, sample_plans
from evomerge.session.parts import Parts
from evomerge.session.timing import least_seconds

_SIDES = (48, 96, 192, 384)  # of matrices that are measured, until one takes long
_LONG = 0.5  # seconds of one; the next size takes up to eight times as long


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
    rates: dict[Hashable, float] = {}

    def seconds(made: DerivedTensor) -> float:
        derived = made.method.derived
        assert derived is not None
        kind = made.method.spec.name, derived.variant(made.values), made.inputs
        if kind not in rates:
            rates[kind] = measured(derived, made.values, made.inputs, device)
        if derived.cubic and len(made.shape) != 2:  # a mean, or as little as that
            return 0.0
        return rates[kind] * math.prod(made.shape) * (min(made.shape) if derived.cubic else 1)

    once = sum(seconds(made) for made in lasting.values())
    anew = sum(seconds(made) for of, made in last.items() if of not in lasting)
    need = sum(made.nbytes for made in lasting.values())
    homeless = max(0.0, 1 - kept / need) if kept is not None and need else 0.0
    names = dict.fromkeys(made.method.spec.name for own in each for made in own.values())
    return DerivedTime(tuple(names), len(lasting), once, anew + homeless * once, threads)


def measured(derived: Derived, values: Mapping[str, Any], inputs: int, device: torch.device) -> float:
    """Seconds of an element, times the shorter side of its matrix where that counts (`Derived.cubic`).

    Decompositions of 384 rows take as much for each operation as those of 1536, to a fifth. Where much time goes to
    steps over elements, as in `doge`, what is found of large matrices is too much.
    """
    generator, taken = torch.Generator().manual_seed(0), 0.0
    for side in _SIDES:
        base = torch.randn(side, side, generator=generator)
        tasks = [(base + 0.01 * torch.randn(side, side, generator=generator)).to(device) for _ in range(inputs)]
        base = base.to(device)
        seconds = least_seconds(functools.partial(_make, derived, values, tasks, base), device)
        taken = seconds / side ** (3 if derived.cubic else 2)
        if seconds > _LONG:
            break
    return taken


def _make(derived: Derived, values: Mapping[str, Any], tasks: Sequence[torch.Tensor], base: torch.Tensor) -> None:
    shape, beside = tuple(base.shape), {}
    if derived.beside is not None:  # the tensor stands for all of its layer or model, which are passed over likewise
        flat, below, members = [task.view(-1) for task in tasks], base.view(-1), Members.shaped({"": shape})
        alone = NotedStatistics(
            *(flat, below, shape, (), range(len(tasks) + 1), Notes(0)),
            values=lambda used, _: ScopeValues("", members, Notes(0), lambda _: ([flat[i] for i in used], below)),
        )
        beside = dict(derived.beside(values, alone))
    derived.make(values, tasks, base, shape, beside=beside)

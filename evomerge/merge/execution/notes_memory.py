"""What merging takes beside the sources and the model: notes about the sources, and scratch of the kernels."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merge.cache.merged_slice import ALIGNMENT
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.execution.tensor_merge import DEVICE_BLOCK, merge_tensor
from evomerge.merge.methods import METHODS
from evomerge.merge.methods.derived import Derived
from evomerge.merge.methods.registry import Method
from evomerge.merge.mixes.mix import Cut, DeviceCut
from evomerge.merge.planning.slice_plan import Part, Plan, Source
from evomerge.models.checkpoints.headers import FLOAT_DTYPES
from evomerge.models.pool import Pool
from evomerge.utils.memory import MemoryPart

_ORDER = 4  # bytes of an element's index in an order (`CpuStatistics.order`)
_SORT = 12  # bytes of an element while it is sorted: its magnitude twice, and another index (`selection.order`)
_RANKS = 1500 * 16  # bytes of a histogram: bins that magnitudes of a task vector fill, with their counts
_SQUARES = 3  # of inner products, in float64: themselves, their vectors, what LAPACK works in
_DEVICE_COUNT = 20  # bytes of an element that is counted on a device: both sides, their difference, its bin as int64


def notes_memory(plans: Sequence[Plan], pool: Pool, budget: int) -> list[MemoryPart]:
    """What is kept of the sources for all candidates, on the processor, within a budget for the large notes.

    Args:
        plans: of some candidates of a search, and of the pool's own models where they are scored.
        pool: the source models.
        budget: bytes (`sources.Placement.notes`).
    """
    aligned = sum({name: _copied(pool, *name) for plan in plans for name in _unchanged(plan)}.values())
    copies = min(aligned, budget)
    asked = _sorted_tensors(plans, pool)
    orders = min(_ORDER * sum(asked.values()), budget - copies)
    ranks = sum(min(_RANKS, 16 * count) for count in asked.values())
    parts = []
    if copies:
        parts.append(MemoryPart("copies", copies, "of sources, aligned, to be scored as they are"))
    if asked:
        methods = sorted({part.method for plan in plans for part in _parts(plan) if part.method and _asks(part, pool)})
        text = f"for {', '.join(methods)}: the order of every task vector's magnitudes"
        parts.append(MemoryPart("statistics", orders + ranks, text))
    made = _kept_derived(plans, pool)
    if made:
        methods = sorted({part.method for plan in plans for part in _parts(plan) if part.method and _derives(part)})
        room = max(0, budget - copies - orders)
        text = f"for {', '.join(methods)}: what they make of all sources, once"
        parts.append(MemoryPart("derived", min(made, room), text))
    return parts


def scratch_memory(plans: Sequence[Plan], pool: Pool, on_host: bool) -> list[MemoryPart]:
    """What merging the largest tensor takes for a moment, on the processor or on the device."""
    asked = _sorted_tensors(plans, pool)
    largest = max(asked.values(), default=0)
    largest = largest * _SORT if on_host else min(largest, DEVICE_BLOCK) * _DEVICE_COUNT
    for part, like in _tensors(plans, pool):
        method, inputs = METHODS[part.method or "passthrough"], len(part.sources) + (part.base is not None)
        count = math.prod(pool.layout.shapes[like])
        if method.derived is not None:
            largest = max(largest, _while_derived(pool.layout.shapes[like], inputs, method.derived))
            continue
        whole = not method.elementwise and _mix(method, part, pool.layout.shapes[like]) is None
        if whole:  # all as float32, the result, and as much again while it is computed
            largest = max(largest, 4 * (inputs + 2) * count)
        elif not on_host:  # `torch_mix.mix_block`: the parts, their sum and, where signs are elected, mean and divisor
            largest = max(largest, 4 * (inputs + 5) * min(count, DEVICE_BLOCK))
    if not largest:
        return []
    return [
        MemoryPart("scratch", largest, "of the largest tensor", place="host" if on_host else "device", during="merging")
    ]


class _Asked:
    """`mix.Statistics` that keeps which task vectors were asked for ranks, and answers with something."""

    def __init__(self, shape: tuple[int, ...], inputs: int, has_base: bool) -> None:
        self.shape, self.count, self.has_base = shape, math.prod(shape), has_base
        self._inputs = inputs
        self.ranked: set[int] = set()

    def gram(self, differences: bool = False) -> NDArray[np.float64]:
        return np.eye(self._inputs)

    def size(self, index: int, scope: str) -> int:
        return self.count

    def cut(self, index: int, first: int, last: int, scope: str = "tensor") -> Cut | None:
        self.ranked.add(index)
        return None

    def magnitude_kept(self, index: int, cut: Cut | DeviceCut | None, density: float | None) -> float:
        return 1.0

    def row_ranks(self, index: int) -> None:
        return None


def _parts(plan: Plan) -> Iterator[Part]:
    """Those of a plan and of the intermediates that it takes."""
    seen: set[str] = set()
    todo = list(plan.slices)
    while todo:
        entry = todo.pop()
        if entry.key in seen:
            continue
        seen.add(entry.key)
        for part in entry.parts:
            yield part
            todo += [s.made for s in (*part.sources, *([part.base] if part.base else [])) if s.made is not None]


def _tensors(plans: Sequence[Plan], pool: Pool) -> Iterator[tuple[Part, str]]:
    """One tensor of every size that every part merges, by its name in the layout."""
    seen: set[Any] = set()
    for plan in plans:
        for entry in plan.slices:
            for part in entry.parts:
                for index in part.tensors:
                    shape = tuple(pool.layout.shapes[entry.like[index]])
                    kind = part.method, part.values, len(part.sources), shape
                    if part.method is not None and kind not in seen and pool.is_merged(entry.like[index]):
                        seen.add(kind)
                        yield part, entry.like[index]


def _sorted_tensors(plans: Sequence[Plan], pool: Pool) -> dict[tuple[str, str, str], int]:
    """Elements of every task vector that is sorted: by model, base and tensor."""
    found: dict[tuple[str, str, str], int] = {}
    for plan in plans:
        for part in _parts(plan):
            if part.method is None or part.base is None or part.base.made is not None:
                continue
            for index in part.tensors:
                shape = _shape(pool, part.base, index)
                for number in _ranked(METHODS[part.method], part, shape):
                    source = part.sources[number]
                    if source.made is None:  # of intermediates nothing is kept
                        found[source.model, part.base.model, source.tensors[index]] = math.prod(shape)
    return found


def _derives(part: Part) -> bool:
    return part.method is not None and METHODS[part.method].derived is not None


class DerivedTensor(NamedTuple):
    """What a method makes of the sources of one tensor (`Derived`).

    Attributes:
        of: method, parameters, and what of: equal for what is made once.
        method, values: how it is made.
        inputs: number of models.
        shape: of the tensor.
    """

    of: tuple[str, Hashable, Hashable]
    method: Method
    values: Mapping[str, Any]
    inputs: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of what is made."""
        assert self.method.derived is not None, "asked for what was declared"
        return self.method.derived.nbytes(self.values, math.prod(self.shape))


def derived_tensors(plan: Plan, pool: Pool) -> Iterator[DerivedTensor]:
    """What a plan's methods make of models, tensor by tensor; some may come twice."""
    for part in _parts(plan):
        every = (*part.sources, *([part.base] if part.base else []))
        if not _derives(part) or part.base is None or any(source.made for source in every):
            continue
        method, values = METHODS[part.method or ""], dict(part.values)
        made = method.derived
        assert made is not None
        if made.simple(values, len(part.sources)) is not None:
            continue
        variant = made.variant(values)
        for index in part.tensors:
            if pool.layout.integers.isdisjoint(source.tensors[index] for source in every):
                names = tuple((source.model, source.tensors[index]) for source in every)
                shape = _shape(pool, part.base, index)
                yield DerivedTensor((method.spec.name, variant, names), method, values, len(part.sources), shape)


def _kept_derived(plans: Sequence[Plan], pool: Pool) -> int:
    """Bytes of what methods make of sources. Of parameters that change, other values are seldom kept."""
    found: dict[Any, int] = {}
    for made in (made for plan in plans for made in derived_tensors(plan, pool)):
        assert made.method.derived is not None
        method, variant, names = made.of
        found[method, made.nbytes if made.method.derived.changing else variant, names] = made.nbytes
    return sum(found.values())


def _while_derived(shape: Sequence[int], tensors: int, made: Derived) -> int:
    """Bytes that making something of a tensor takes for a moment: all as float32 and float64, and what LAPACK needs."""
    count = math.prod(shape)
    square = min(shape[1], shape[0] * tensors) ** 2 if len(shape) == 2 and made.cubic else 0
    return (12 * tensors + 8 * made.copies) * count + 8 * _SQUARES * square


def _asks(part: Part, pool: Pool) -> bool:
    assert part.method is not None
    return part.base is not None and bool(_ranked(METHODS[part.method], part, _shape(pool, part.base, part.tensors[0])))


def _shape(pool: Pool, source: Source, index: int) -> tuple[int, ...]:
    """Of a source's tensor, which may be in a layer beyond the layout's."""
    return tuple(pool.layout.shapes.get(source.tensors[index], ()))


def _ranked(method: Method, part: Part, shape: tuple[int, ...]) -> set[int]:
    asked = _Asked(shape, len(part.sources), part.base is not None)
    _mix(method, part, shape, asked)
    return asked.ranked


def _mix(method: Method, part: Part, shape: tuple[int, ...], asked: _Asked | None = None) -> Any:
    """The mix that a part's method is on a tensor, were it asked; ``None`` where only its function will do."""
    if method.mix is None or not math.prod(shape):
        return None
    values: Mapping[str, Any] = dict(part.values) if part.method is not None else {"scale": (1.0,)}
    try:
        return method.mix(values, asked or _Asked(shape, len(part.sources), part.base is not None))
    except Exception:  # of a method of one's own, which may not like these answers
        return ()


def _unchanged(plan: Plan) -> Iterator[tuple[str, str]]:
    """Model and tensor, by its name in the layout, of all that a plan takes as it is."""
    for entry in plan.slices:
        source = entry.unchanged
        if source is not None and source.made is None:
            yield from ((source.model, name) for name in source.tensors)


def _copied(pool: Pool, model: str, name: str) -> int:
    """Bytes of a copy of a tensor that lies in its file where kernels cannot use it (`sources.Sources.aligned`)."""
    checkpoint, stored = pool.checkpoints[model], pool.stored[model][name]
    info = checkpoint.tensors[stored]
    if stored in checkpoint.changed or info.start % ALIGNMENT == 0 or pool.layout.joins:
        return 0
    return info.nbytes if FLOAT_DTYPES.get(info.dtype) == TORCH_DTYPES[pool.info.dtype] else 0


def device_sources(pool: Pool, on_device: int, on_host: int, staging: int = 0) -> list[MemoryPart]:
    """The sources that an accelerator keeps, as far as there is room, and what is pinned of the rest.

    Args:
        pool: the source models.
        on_device, on_host: bytes of room (`sources.Placement`); on the host, where tensors can be pinned.
        staging: bytes of the device that sources are copied into.
    """
    whole = pool.nbytes
    kept = min(whole, on_device)
    parts = [MemoryPart("sources", kept, "tensors kept where they are merged", place="device")]
    if staging:
        parts.append(MemoryPart("staging", staging, "sources of the slices that are merged next", place="device"))
    if on_host and whole > kept:
        text = "sources on their way to the device, for all workers"
        parts.append(MemoryPart("pinned", min(whole - kept, on_host), text, per_machine=True))
    return parts


def load_kernels() -> None:
    """Have the compiler and the kernels of the processor in memory, as the first merge has: they are not small."""
    tensors = [torch.ones(ALIGNMENT), torch.ones(ALIGNMENT)]
    merge_tensor(
        METHODS["linear"], tensors, None, {"weight": (0.5, 0.5), "normalize": True}, out=torch.empty(ALIGNMENT)
    )

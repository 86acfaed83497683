"""The engine: computes the tensors of a slice in float32 and rounds them once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch

from evomerge.errors import EvomergeError
from evomerge.merge.cpu_mix import KINDS, mix_
from evomerge.merge.masks import mask_key
from evomerge.merge.methods import METHODS, Context, Method
from evomerge.merge.mix import Mix, Statistics
from evomerge.merge.noted_statistics import NotedStatistics
from evomerge.merge.plan import Part, SlicePlan, Source
from evomerge.merge.sources import Notes, Placement, Sources
from evomerge.merge.torch_mix import mix_block
from evomerge.models.pool import Pool
from evomerge.models.reader import FLOAT_DTYPES

TORCH_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES.values()}
"""Torch dtypes by the names that recipes use."""

_CPU_BLOCK = 1 << 16  # elements: a handful of float32 temporaries of a block stay in the second-level cache
_DEVICE_BLOCK = 1 << 26  # few large kernels

Made = Callable[[SlicePlan], Mapping[str, torch.Tensor]]
"""Gives the tensors of an intermediate's slice."""


def merge_tensor(
    method: Method,
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    values: Mapping[str, Any],
    keys: Sequence[int] = (),
    *,
    out: torch.Tensor,
    statistics: Statistics | None = None,
    block: int | None = None,
) -> None:
    """Merge one tensor into `out`.

    Args:
        method: the merge method.
        inputs, base: the source tensors, as many elements as `out`, of any of the merged dtypes; not written to.
        values: the method's arguments by name (`methods.call_values`).
        keys: mask keys of the inputs, for methods that drop at random.
        out: receives the result, computed in float32 and rounded once to its dtype; contiguous.
        statistics: of the inputs; computed when asked by default.
        block: elements merged at a time by torch operations; the result does not depend on it.

    Raises:
        EvomergeError: the result would not be finite.
    """
    flat, origin = [tensor.view(-1) for tensor in inputs], base.view(-1) if base is not None else None
    target, mix = out.view(-1), None
    if method.mix is not None:
        if statistics is None:
            names: list[Hashable] = list(range(len(flat) + (origin is not None)))
            statistics = NotedStatistics(flat, origin, tuple(out.shape), keys, names, Notes(0))
        mix = method.mix(values, statistics)
    if mix is not None and _compiled(target, flat):
        finite = mix_(target, mix, flat, origin if mix.differences else None, keys)
    else:
        finite = _merge_by_torch(method, mix, flat, origin, values, keys, out, block)
    if not finite:
        raise EvomergeError(
            f"merging by {method.spec.name} gives numbers that are NaN or beyond the range of {_name(out.dtype)}",
            "finite numbers",
            "check the sources' weights and the parameters, or merge to another dtype",
        )


def _compiled(target: torch.Tensor, inputs: Sequence[torch.Tensor]) -> bool:
    """Whether the CPU's kernels can do it."""
    return target.device.type == "cpu" and target.dtype in KINDS and all(x.dtype in KINDS for x in inputs)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _merge_by_torch(
    method: Method,
    mix: Mix | None,
    flat: Sequence[torch.Tensor],
    origin: torch.Tensor | None,
    values: Mapping[str, Any],
    keys: Sequence[int],
    out: torch.Tensor,
    block: int | None,
) -> bool:
    """The mix or the method's function by torch operations; returns whether all of it is finite."""
    if mix is None and not method.elementwise:
        assert method.function is not None, "a method has a mix or a function"
        shaped = [tensor.float().view(out.shape) for tensor in flat]
        below = origin.float().view(out.shape) if origin is not None else None
        out.copy_(method.function(shaped, below, context=Context(0, tuple(keys)), **values))
        return bool(torch.isfinite(out).all())
    target = out.view(-1)
    count, finite = target.numel(), torch.ones((), dtype=torch.bool, device=target.device)
    size = block or (_CPU_BLOCK if target.device.type == "cpu" else _DEVICE_BLOCK)
    for start in range(0, count, size):
        stop = min(start + size, count)
        parts = [tensor[start:stop] for tensor in flat]
        below = origin[start:stop] if origin is not None else None
        if mix is not None:
            result = mix_block(mix, parts, below, keys, start)
        else:
            assert method.function is not None, "a method has a mix or a function"
            floats = [part.float() for part in parts]
            bottom = below.float() if below is not None else None
            result = method.function(floats, bottom, context=Context(start, tuple(keys)), **values)
        target[start:stop].copy_(result)
        finite &= torch.isfinite(target[start:stop]).all()
    return bool(finite)


@torch.no_grad()
def merge_slice(
    plan: SlicePlan,
    pool: Pool,
    device: str | torch.device = "cpu",
    sources: Sources | None = None,
    out: Mapping[str, torch.Tensor] | None = None,
    made: Made | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of one output slice, by output name.

    Tensors of another than the merged dtypes (integer buffers) are copied from the model that gives the
    configuration.

    Args:
        plan: the slice's plan.
        pool: the source models.
        device: where to merge, when `sources` is not given.
        sources: the pool's tensors on a device, kept between calls.
        out: tensors to write into, by output name; new ones of the plan's dtype otherwise.
        made: gives the tensors of intermediates' slices; they are merged here otherwise.

    Raises:
        EvomergeError: a tensor cannot be read or merged; it is named.
    """
    return _SliceMerge(plan, pool, sources or Sources(pool, device, Placement(0, 0, 0)), made).run(out)


class _SliceMerge:
    """Merges one slice."""

    def __init__(self, plan: SlicePlan, pool: Pool, sources: Sources, made: Made | None) -> None:
        self.plan, self.pool, self.sources = plan, pool, sources
        self.dtype = TORCH_DTYPES[plan.dtype]
        self._made = made or (lambda inner: merge_slice(inner, pool, sources=sources))
        self._stages: dict[str, Mapping[str, torch.Tensor]] = {}

    def run(self, out: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """All tensors."""
        results = {}
        for part in self.plan.parts:
            for index in part.tensors:
                name = self.plan.tensors[index]
                results[name] = self.tensor(part, index, out[name] if out is not None else None)
        return {name: results[name] for name in self.plan.tensors}

    def tensor(self, part: Part, index: int, given: torch.Tensor | None) -> torch.Tensor:
        """One tensor, written into `given` where there is one."""
        reference = self.plan.like[index]
        if not self.pool.is_merged(reference):
            copy = self.pool.read(self.pool.info.config_from, reference)
            return given.copy_(copy) if given is not None else copy.to(self.sources.device, copy=True)
        # A tensor that the module keeps in another dtype holds what a file in the plan's dtype would give it.
        direct = given is not None and given.dtype == self.dtype and given.is_contiguous()
        shape = self.pool.layout.shapes[reference]
        target = given if direct else torch.empty(shape, dtype=self.dtype, device=self.sources.device)
        assert target is not None
        inputs = [self.flat(source, index) for source in part.sources]
        if part.method is None:
            target.view(-1).copy_(inputs[0])
        else:
            self.merge(part, index, inputs, target)
        return target if given is None or direct else given.copy_(target)

    def merge(self, part: Part, index: int, inputs: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        """Merge one tensor by the part's method."""
        assert part.method is not None
        method = METHODS[part.method]
        keys: tuple[int, ...] = ()
        if method.random:
            keys = tuple(mask_key(part.seed, source.identity, source.tensors[index]) for source in part.sources)
        base = self.flat(part.base, index) if part.base else None
        every = (*part.sources, *([part.base] if part.base else []))
        # Intermediates come and go with their candidates; notes are kept of models.
        lasting = not any(source.made for source in every)
        names = [(source.model, source.tensors[index]) for source in every]
        notes = self.sources.notes if lasting else Notes(0)
        statistics = NotedStatistics(inputs, base, tuple(target.shape), keys, names, notes)
        try:
            merge_tensor(method, inputs, base, dict(part.values), keys, out=target, statistics=statistics)
        except EvomergeError as error:
            name = self.plan.tensors[index]
            raise type(error)(f"tensor {name!r}: {error.given}", error.allowed, error.do) from error

    def flat(self, source: Source, index: int) -> torch.Tensor:
        """A source's tensor as one dimension on the device."""
        if source.made is None:
            return self.sources.flat(source.model, source.tensors[index])
        if source.identity not in self._stages:
            self._stages[source.identity] = self._made(source.made)
        return self._stages[source.identity][source.tensors[index]].view(-1)

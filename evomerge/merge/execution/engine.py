"""The engine: computes the tensors of a slice in float32 and rounds them once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from evomerge.errors import EvomergeError
from evomerge.merge.execution.noted_statistics import NotedStatistics
from evomerge.merge.execution.sources import Notes, Placement, Sources
from evomerge.merge.execution.stage_slices import StageSlices
from evomerge.merge.kernels.sums import CHUNK
from evomerge.merge.methods import METHODS, Context, Method
from evomerge.merge.mixes.cpu_mix import KINDS, MixCall, mix_, mix_call
from evomerge.merge.mixes.cpu_statistics import Window
from evomerge.merge.mixes.masks import mask_key
from evomerge.merge.mixes.mix import Mix, Statistics
from evomerge.merge.mixes.torch_mix import mix_block
from evomerge.merge.planning.slice_plan import Factor, Part, SlicePlan, Source
from evomerge.models.checkpoints.headers import FLOAT_DTYPES
from evomerge.models.pool import Pool

TORCH_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES.values()}
"""Torch dtypes by the names that recipes use."""

_CPU_BLOCK = 1 << 16  # elements: a handful of float32 temporaries of a block stay in the second-level cache
DEVICE_BLOCK = 1 << 26  # few large kernels

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
    TensorMerge(method, inputs, base, values, keys, tuple(out.shape), statistics).run(out.view(-1), block=block)


class TensorMerge:
    """One tensor's merge, to be carried out at once or in pieces.

    Args:
        method, inputs, base, values, keys, statistics: as for `merge_tensor`.
        shape: of the tensor.
        factor: changes the result before it is rounded.

    Attributes:
        divisible: whether `run` can give a part of the tensor.
    """

    def __init__(
        self,
        method: Method,
        inputs: Sequence[torch.Tensor],
        base: torch.Tensor | None,
        values: Mapping[str, Any],
        keys: Sequence[int],
        shape: tuple[int, ...],
        statistics: Statistics | None = None,
        factor: Factor | None = None,
    ) -> None:
        self._factor = factor
        self._method, self._values, self._keys, self._shape = method, values, tuple(keys), shape
        self._inputs, self._base = [_flat(tensor) for tensor in inputs], _flat(base) if base is not None else None
        self._mix: Mix | None = None
        if method.mix is not None:
            if statistics is None:
                names: list[Hashable] = list(range(len(self._inputs) + (base is not None)))
                statistics = NotedStatistics(self._inputs, self._base, shape, keys, names, Notes(0))
            self._mix = method.mix(values, statistics)
        self.divisible = self._mix is not None or method.elementwise

    def run(self, out: torch.Tensor, begin: int = 0, block: int | None = None) -> None:
        """Merge into `out`, flat: the whole tensor, or its elements from `begin` on.

        Raises:
            EvomergeError: the result would not be finite.
        """
        if self._factor is not None:
            wide = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
            finite = self._merged(wide, begin, block)
            self._factor(wide)
            if wide is not out:
                out.copy_(wide)
            finite = finite and bool(torch.isfinite(out).all())
        else:
            finite = self._merged(out, begin, block)
        if not finite:
            raise self.not_finite(out.dtype)

    def _merged(self, out: torch.Tensor, begin: int, block: int | None) -> bool:
        """The merge without a factor; returns whether all of it is finite."""
        mix = self._mix
        if mix is not None and _compiled(out, self._inputs):
            return mix_(out, mix, self._inputs, self._base, self._keys, begin)
        return self._by_blocks(out, begin, block) if self.divisible else self._whole(out)

    def call(self, out: torch.Tensor) -> MixCall | None:
        """The whole tensor's merge into `out`, flat, ready for any thread; ``None`` where that is not to be had."""
        if self._mix is None or self._factor is not None or not out.numel() or not _compiled(out, self._inputs):
            return None
        return mix_call(out, self._mix, self._inputs, self._base, self._keys)

    def not_finite(self, dtype: torch.dtype) -> EvomergeError:
        """The error for a result that is not finite."""
        return EvomergeError(
            f"merging by {self._method.spec.name} gives numbers that are NaN or beyond the range of {_name(dtype)}",
            "finite numbers",
            "check the sources' weights and the parameters, or merge to another dtype",
        )

    def _whole(self, out: torch.Tensor) -> bool:
        """The method's function on whole tensors; returns whether all of it is finite."""
        assert self._method.function is not None, "a method has a mix or a function"
        shaped = [tensor.float().view(self._shape) for tensor in self._inputs]
        below = self._base.float().view(self._shape) if self._base is not None else None
        result = self._method.function(shaped, below, context=Context(0, self._keys), **self._values)
        out.copy_(result.reshape(-1))
        return bool(torch.isfinite(out).all())

    def _by_blocks(self, out: torch.Tensor, begin: int, block: int | None) -> bool:
        """The mix or the method's function by torch operations; returns whether all of it is finite."""
        count, finite = out.numel(), torch.ones((), dtype=torch.bool, device=out.device)
        size = block or (_CPU_BLOCK if out.device.type == "cpu" else DEVICE_BLOCK)
        for start in range(0, count, size):
            target = out[start : start + size]
            at = slice(begin + start, begin + start + target.numel())
            parts = [tensor[at] for tensor in self._inputs]
            below = self._base[at] if self._base is not None else None
            if self._mix is not None:
                result = mix_block(self._mix, parts, below, self._keys, at.start)
            else:
                assert self._method.function is not None, "a method has a mix or a function"
                floats = [part.float() for part in parts]
                bottom = below.float() if below is not None else None
                result = self._method.function(floats, bottom, context=Context(at.start, self._keys), **self._values)
            target.copy_(result)
            finite &= torch.isfinite(target).all()
        return bool(finite)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dim() == 1 else tensor.view(-1)


def _compiled(target: torch.Tensor, inputs: Sequence[torch.Tensor]) -> bool:
    """Whether the CPU's kernels can do it."""
    return target.device.type == "cpu" and target.dtype in KINDS and all(x.dtype in KINDS for x in inputs)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
    return SliceMerge(plan, pool, sources or Sources(pool, device, Placement(0, 0, 0)), made).run(out)


class SliceMerge:
    """Merges one slice.

    Args:
        plan, pool, sources, made: as for `merge_slice`.
        window_bytes: how much of mapped sources may take memory at a time; all for ``None``.
    """

    def __init__(
        self, plan: SlicePlan, pool: Pool, sources: Sources, made: Made | None = None, window_bytes: int | None = None
    ) -> None:
        self.plan, self.pool, self.sources = plan, pool, sources
        self.dtype = TORCH_DTYPES[plan.dtype]
        self._made = made or StageSlices(plan, lambda inner, own: merge_slice(inner, pool, sources=sources, made=own))
        self._stages: dict[str, tuple[torch.Tensor, ...]] = {}
        self._window_bytes = window_bytes

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
        copy = self.copied(index)
        if copy is not None:
            return given.copy_(copy) if given is not None else copy.to(self.sources.device, copy=True)
        # A tensor that the module keeps in another dtype holds what a file in the plan's dtype would give it.
        direct = given is not None and given.dtype == self.dtype and given.is_contiguous()
        shape = self.pool.layout.shapes[self.plan.like[index]]
        target = given if direct else torch.empty(shape, dtype=self.dtype, device=self.sources.device)
        assert target is not None
        with self.naming(index):
            self.merge(part, index).run(target.view(-1))
        return target if given is None or direct else given.copy_(target)

    def prepared(self, part: Part, index: int, given: torch.Tensor) -> tuple[TensorMerge, MixCall] | None:
        """One tensor's merge into `given`, ready for any thread; ``None`` where that is not to be had."""
        merged = self.pool.is_merged(self.plan.like[index])
        if not merged or given.dtype != self.dtype or not given.is_contiguous():
            return None
        with self.naming(index):
            job = self.merge(part, index)
            call = job.call(given.view(-1))
        return (job, call) if call is not None else None

    def copied(self, index: int) -> torch.Tensor | None:
        """The tensor itself where it is no float that is merged, ``None`` otherwise."""
        reference = self.plan.like[index]
        return None if self.pool.is_merged(reference) else self.pool.read(self.pool.info.config_from, reference)

    def merge(self, part: Part, index: int) -> TensorMerge:
        """What merges one tensor by the part's method."""
        method = METHODS[part.method or "passthrough"]  # which also finds what is not finite
        keys: tuple[int, ...] = ()
        if method.random:
            keys = tuple(mask_key(part.seed, source.identity, source.tensors[index]) for source in part.sources)
        inputs = [self.flat(source, index) for source in part.sources]
        base = self.flat(part.base, index) if part.base else None
        every = (*part.sources, *([part.base] if part.base else []))
        # Intermediates come and go with their candidates; notes are kept of models.
        lasting = not any(source.made for source in every)
        names = [(source.model, source.tensors[index]) for source in every]
        notes = self.sources.notes if lasting else Notes(0)
        shape = tuple(self.pool.layout.shapes[self.plan.like[index]])
        window = self.window([*inputs, *([base] if base is not None else [])])
        statistics = NotedStatistics(inputs, base, shape, keys, names, notes, window)
        values = dict(part.values) if part.method is not None else {"scale": (1.0,)}
        factor = self.plan.factor_of.get(index)
        return TensorMerge(method, inputs, base, values, keys, shape, statistics, factor)

    def window(self, tensors: Sequence[torch.Tensor]) -> Window | None:
        """How much of these tensors may take memory at a time."""
        if self._window_bytes is None:
            return None
        width = sum(tensor.element_size() for tensor in tensors)
        return Window(max(self._window_bytes // width // CHUNK, 1) * CHUNK, self.pool.unmap)

    @contextmanager
    def naming(self, index: int) -> Iterator[None]:
        """Name the tensor in errors."""
        try:
            yield
        except EvomergeError as error:
            name = self.plan.tensors[index]
            raise type(error)(f"tensor {name!r}: {error.given}", error.allowed, error.do) from error

    def flat(self, source: Source, index: int) -> torch.Tensor:
        """A source's tensor as one dimension on the device."""
        if source.made is None:
            return self.sources.flat(source.model, source.tensors[index])
        # By number: slices of two layers may be one and the same, under the names of either.
        if source.identity not in self._stages:
            made = self._made(source.made)
            self._stages[source.identity] = tuple(made[name] for name in source.made.tensors)
        return self._stages[source.identity][index].view(-1)

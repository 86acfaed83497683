"""The engine: computes the tensors of a slice in float32 and rounds them once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from evomerge.errors import EvomergeError
from evomerge.merge.masks import mask_key
from evomerge.merge.methods import METHODS, Context, Method
from evomerge.merge.plan import SlicePlan
from evomerge.merge.torch_mix import TensorStatistics, mix_block
from evomerge.models.pool import Pool
from evomerge.models.reader import FLOAT_DTYPES

TORCH_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES.values()}
"""Torch dtypes by the names that recipes use."""

_CPU_BLOCK = 1 << 16  # elements: a handful of float32 temporaries of a block stay in the second-level cache
_DEVICE_BLOCK = 1 << 26  # few large kernels
_SHARE_OF_MEMORY = 0.25


class Sources:
    """The pool's tensors on a device, kept as float32 while they fit in a budget of bytes.

    What is kept changes the time that a merge takes and never its result.

    Args:
        pool: the source models.
        device: where merging happens.
        budget: bytes to keep; by default a quarter of what is free on the device when first used. Tensors
            that are float32 in a file on the CPU are mapped and cost none.
    """

    def __init__(self, pool: Pool, device: str | torch.device = "cpu", budget: int | None = None) -> None:
        self.pool = pool
        self.device = torch.device(device)
        self.budget = int(free_memory(self.device) * _SHARE_OF_MEMORY) if budget is None else budget
        self.kept_bytes = 0
        self._kept: dict[tuple[str, str], torch.Tensor] = {}

    def flat(self, model: str, name: str) -> torch.Tensor:
        """A tensor of a model as one dimension on the device, in float32 when kept, else in its stored dtype."""
        kept = self._kept.get((model, name))
        if kept is not None:
            return kept
        tensor = self.pool.read(model, name).view(-1)
        mapped = self.device.type == "cpu" and tensor.dtype == torch.float32
        cost = 0 if mapped else 4 * tensor.numel()
        if cost > self.budget - self.kept_bytes:
            return tensor.to(self.device)
        tensor = tensor.to(self.device, torch.float32)
        self.kept_bytes += cost
        self._kept[model, name] = tensor
        return tensor


def free_memory(device: torch.device) -> int:
    """Bytes free on a device (for the CPU: in main memory)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return 0


def merge_tensor(
    method: Method,
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    values: Mapping[str, Any],
    keys: tuple[int, ...] = (),
    *,
    out: torch.Tensor,
    block: int | None = None,
) -> None:
    """Merge one tensor into `out`.

    Args:
        method: the merge method.
        inputs, base: the source tensors, as many elements as `out`, of any of the merged dtypes; not written to.
        values: the method's arguments by name (`methods.call_values`).
        keys: mask keys of the inputs, for methods that drop at random.
        out: receives the result, computed in float32 and rounded once to its dtype; contiguous.
        block: elements merged at a time; the result does not depend on it.
    """
    flat, origin = [tensor.view(-1) for tensor in inputs], base.view(-1) if base is not None else None
    mix = method.mix(values, TensorStatistics(flat, origin, tuple(out.shape), keys)) if method.mix else None
    target = out.view(-1)
    count = target.numel()
    if mix is None:
        assert method.function is not None, "a method has a mix or a function"
        if not method.elementwise:
            shaped = [tensor.float().view(out.shape) for tensor in inputs]
            below = base.float().view(out.shape) if base is not None else None
            out.copy_(method.function(shaped, below, context=Context(0, keys), **values))
            return
    size = block or (_CPU_BLOCK if target.device.type == "cpu" else _DEVICE_BLOCK)
    for start in range(0, count, size):
        stop = min(start + size, count)
        parts = [tensor[start:stop] for tensor in flat]
        below = origin[start:stop] if origin is not None else None
        if mix is not None:
            result = mix_block(mix, parts, below, keys, start)
        else:
            assert method.function is not None
            floats = [part.float() for part in parts]
            bottom = below.float() if below is not None else None
            result = method.function(floats, bottom, context=Context(start, keys), **values)
        target[start:stop].copy_(result)


@torch.no_grad()
def merge_slice(
    plan: SlicePlan,
    pool: Pool,
    device: str | torch.device = "cpu",
    sources: Sources | None = None,
    out: Mapping[str, torch.Tensor] | None = None,
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

    Raises:
        EvomergeError: a tensor cannot be read or merged; it is named.
    """
    sources = sources or Sources(pool, device)
    dtype = TORCH_DTYPES[plan.dtype]
    identities = {name: ref.identity for name, ref in pool.info.refs}
    values, results = dict(plan.values), {}
    for index, name in enumerate(plan.tensors):
        stored = [source.tensors[index] for source in plan.sources]
        shape = pool.layout.shapes[stored[0]]
        given = out[name] if out is not None else None
        if not pool.is_merged(stored[0]):
            copy = pool.read(pool.info.config_from, stored[0])
            results[name] = given.copy_(copy) if given is not None else copy.to(sources.device, copy=True)
            continue
        # A tensor that the module keeps in another dtype holds what a file in the plan's dtype would give it.
        direct = given is not None and given.dtype == dtype and given.is_contiguous()
        target = given if direct else torch.empty(shape, dtype=dtype, device=sources.device)
        assert target is not None
        inputs = [sources.flat(s.model, own) for s, own in zip(plan.sources, stored, strict=True)]
        if plan.method is None:
            target.view(-1).copy_(inputs[0])
        else:
            method = METHODS[plan.method]
            keys: tuple[int, ...] = ()
            if method.random:
                used = zip(plan.sources, stored, strict=True)
                keys = tuple(mask_key(plan.seed, identities[s.model], own) for s, own in used)
            base = sources.flat(plan.base.model, plan.base.tensors[index]) if plan.base else None
            try:
                merge_tensor(method, inputs, base, values, keys, out=target)
            except EvomergeError as error:
                raise type(error)(f"tensor {name!r}: {error.given}", error.allowed, error.do) from error
        results[name] = target if given is None or direct else given.copy_(target)
    return results

"""What evomerge adds to the processes of vLLM's engine: sources, merging, and changing weights in place.

vLLM gives its worker class these methods (``worker_extension_cls``); they are called by ``LLM.collective_rpc`` in every
process of a tensor-parallel engine, each of which merges whole slices and keeps its own share. Merged weights never
cross a process.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.errors import EvomergeError
from evomerge.evaluation.vllm_groups import require_whole_groups
from evomerge.merge.cache.memory_cache import START_SHARE, MemoryCache
from evomerge.merge.cache.merged_slice import Merged, Shapes
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.execution.parallel import merge_slices
from evomerge.merge.execution.sources import Placement, Sources
from evomerge.merge.planning.slice_plan import SlicePlan
from evomerge.merge.resident.kept_stages import KeptStages
from evomerge.merge.resident.live_slices import LiveSlices
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.models.pool import Pool
from evomerge.recipes.slices import ModelRef
from evomerge.utils.imports import import_modules

BATCH = 1 << 30
"""Bytes of slices that are merged before the engine is given them: what they take besides the model."""

POOLS: dict[str, Pool] = {}
"""Pools that are open in this process, by the token of a `PoolAddress`."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PoolAddress:
    """How a process of the engine comes by the pool.

    Attributes:
        token: of the pool in `POOLS`, for an engine in the process that opened it.
        refs: the pinned models by name.
        base, dtype, trust_remote_code, tokenizer_from: as of `open_pool`.
        modules: with merge methods of the user's own, to be imported.
        folder: that paths and these modules are looked for in; where there is none, on another machine, the process
            stays in its own.
    """

    token: str
    refs: Mapping[str, ModelRef]
    base: str | None
    dtype: str
    trust_remote_code: bool
    tokenizer_from: str | None
    modules: tuple[str, ...] = ()
    folder: str = ""

    def open(self) -> Pool:
        """The pool of this process, or one that is opened now."""
        if self.token in POOLS:
            return POOLS[self.token]
        from evomerge.models.opening import open_pool

        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        import_modules(list(self.modules), "imports")
        return open_pool(
            dict(self.refs),
            base=self.base,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            fingerprints=False,
            tokenizer_from=self.tokenizer_from,
            kept=None,
        )


@dataclass(frozen=True)
class Failure:
    """An error of merging as it crosses a process: vLLM would pass its text on and no more.

    Attributes:
        error: to be raised where the engine is driven.
    """

    error: EvomergeError


class MergeExtension:
    """Methods of vLLM's worker, on an instance of which ``model_runner`` and ``device`` are known."""

    model_runner: Any
    device: torch.device

    def evomerge_open(self, address: PoolAddress, placement: Placement | None, cache: int) -> None:
        """Open the pool here.

        Args:
            address: of the pool.
            placement: of its sources; measured for ``None``.
            cache: bytes of merged slices to keep.
        """
        self.evomerge_slices = EngineSlices(self.model_runner, self.device, address.open(), placement, cache)

    def evomerge_apply(self, entries: Sequence[SlicePlan]) -> MergeCount | Failure:
        """Merge slices and give them to the model; see `EngineSlices.apply`."""
        try:
            return self.evomerge_slices.apply(entries)
        except EvomergeError as error:
            return Failure(error.with_traceback(None))

    def evomerge_forget(self) -> None:
        """Make all keys and values zeros, those of no text too: attention reads what is left of others beside its own
        with a weight of zero, and zero times NaN is NaN."""
        todo: list[Any] = [self.model_runner.kv_caches]
        while todo:
            own = todo.pop()
            if isinstance(own, torch.Tensor):
                own.zero_()
            else:
                todo += own

    def evomerge_clear(self) -> bool:
        """Let go of what is only kept to save time; says whether there was anything."""
        return self.evomerge_slices.clear()


class EngineSlices:
    """The slices of a model inside an engine, changed in place.

    Args:
        runner: vLLM's model runner, whose ``reload_weights`` takes tensors under the names of the checkpoint.
        device: where the model is, and merging happens.
        pool: the source models.
        placement: of the sources.
        cache: bytes of merged slices to keep.
    """

    def __init__(self, runner: Any, device: torch.device, pool: Pool, placement: Placement | None, cache: int) -> None:
        self._runner, self._pool = runner, pool
        self._dtype = TORCH_DTYPES[pool.info.dtype]
        self._device = torch.device(device)
        self._sources = Sources(pool, self._device, placement)
        size = sum(pool.info.sizes) * self._dtype.itemsize
        self._memory = MemoryCache(cache, int(START_SHARE * size))
        self._stages = KeptStages(self._sources, self._memory, LiveSlices(self._memory), None)
        # Of every swap they say that the rest of the model was not loaded.
        logging.getLogger("vllm.model_executor.model_loader.reload").setLevel(logging.ERROR)

    @torch.no_grad()
    def apply(self, entries: Sequence[SlicePlan]) -> MergeCount:
        """Make these slices of the model what their plans describe.

        Nothing of the model has changed when merging fails; of larger models than `BATCH`, whole batches may have.

        Raises:
            EvomergeError: a slice cannot be merged.
        """
        count, start = MergeCount(), time.perf_counter()
        noted = self._sources.notes.seconds
        batch: list[SlicePlan] = []
        size = 0
        for entry in entries:
            batch.append(entry)
            size += sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in self._shapes(entry))
            if size >= BATCH:
                self._change(batch, count)
                batch, size = [], 0
        if batch:
            self._change(batch, count)
        count.seconds = time.perf_counter() - start
        count.noted = self._sources.notes.seconds - noted
        return count

    def clear(self) -> bool:
        """Let go of merged slices and sources that are only kept to save time; says whether there were any."""
        self._pool.release()
        return self._memory.clear() or self._sources.release()

    def _shapes(self, entry: SlicePlan) -> Shapes:
        """Of the tensors of a slice, in its order, as the checkpoint has them."""
        shapes, pool = self._pool.layout.shapes, self._pool
        dtypes = [
            self._dtype if pool.is_merged(like) else pool.read(pool.info.config_from, like).dtype for like in entry.like
        ]
        return tuple((tuple(shapes[like]), dtype) for like, dtype in zip(entry.like, dtypes, strict=True))

    def _change(self, entries: Sequence[SlicePlan], count: MergeCount) -> None:
        """Merge slices, or find them in the cache, and hand them over together."""
        tensors: dict[str, tuple[torch.Tensor, ...]] = {}
        missing: dict[str, SlicePlan] = {}
        for entry in entries:
            found = self._memory.peek(entry.key)
            if found is None:
                missing.setdefault(entry.key, entry)
                continue
            count.memory += 1
            count.saved += found.cost
            tensors[entry.key] = found.tensors
        for key, entry in missing.items():
            tensors[key] = self._memory.empty(self._shapes(entry), self._device)
        outs = [dict(zip(entry.tensors, tensors[key], strict=True)) for key, entry in missing.items()]
        seconds = merge_slices(list(missing.values()), self._sources, outs, self._stages)
        named = {name: t for e in entries for name, t in zip(e.tensors, tensors[e.key], strict=True)}
        self._give({name: tensor for name, tensor in named.items() if tensor.is_floating_point()})
        for key, cost in zip(missing, seconds, strict=True):  # the engine has a copy by now
            merged = Merged(tensors[key], cost)
            count.computed += 1
            count.computed_bytes += merged.nbytes
            self._memory.put(key, merged)

    def _give(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Hand whole fused groups to the engine, which copies them into the storage that its graphs know."""
        model = self._runner.get_model()
        known = [name for own in self._pool.layout.tensors.values() for name in own]
        require_whole_groups(tensors, getattr(model, "packed_modules_mapping", None) or {}, known)
        self._runner.reload_weights(weights_iterator=iter(tensors.items()))
        renew_tied_head(model)


def renew_tied_head(model: Any) -> None:
    """Pack the weights of a tied head again, on the CPU: it computes with a copy from before they changed."""
    head = getattr(model, "lm_head", None)
    if not hasattr(head, "cpu_linear") or not getattr(model.config, "tie_word_embeddings", False):
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    dispatch_cpu_unquantized_gemm(head, remove_weight=False)

"""The resident model: built once, then moved from candidate to candidate slice by slice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from evomerge.errors import PoolError, RecipeError
from evomerge.merge.engine import TORCH_DTYPES, merge_slice
from evomerge.merge.memory_cache import MemoryCache
from evomerge.merge.merged import Merged
from evomerge.merge.module_slices import ModuleSlices
from evomerge.merge.parallel import merge_slices
from evomerge.merge.plan import Plan, SlicePlan, make_plan
from evomerge.merge.shared_cache import SharedCache
from evomerge.merge.sources import Placement, Sources, free_memory
from evomerge.merge.stage_slices import StageSlices
from evomerge.models.compatibility import has_tokenizer
from evomerge.models.layout import model_class
from evomerge.models.loaded import LoadedModel
from evomerge.models.pool import Pool
from evomerge.recipe import SliceId

CACHE_SHARE = 0.25
"""Of the memory that is free when the model has been loaded: what merged slices may take, unless told otherwise."""

BATCH = 1 << 26
"""Bytes of slices that are merged at a time: what they replace is used again for the next."""


@dataclass
class MergeCount:
    """What moving the resident model to a plan took: numbers of slices by where they came from.

    Attributes:
        kept: were in the model already.
        referenced: are a source's own, used where they lie.
        memory: came from the worker's own cache.
        shared: came from the cache that the node's workers share.
        computed: were merged.
        bytes: size of all slices.
        computed_bytes: size of those that were merged.
        seconds: that it took.
        saved: seconds that computing the kept and cached ones took when they were computed.
    """

    kept: int = 0
    referenced: int = 0
    memory: int = 0
    shared: int = 0
    computed: int = 0
    bytes: int = 0
    computed_bytes: int = 0
    seconds: float = 0.0
    saved: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """The numbers by name."""
        return asdict(self)


class Resident:
    """One transformers model in memory that is moved from plan to plan.

    It is loaded by `from_pretrained` from the model that gives the pool's configuration, so that buffers,
    attention implementation and generation settings are those of an ordinary load. Slices are never written in place:
    a changed slice gets memory of its own and what it replaces goes into the cache, so that neither keeping nor
    fetching a slice moves a byte.

    Args:
        pool: the source models.
        device: where the model lives and merging happens.
        attn_implementation: as in `from_pretrained`; ``None`` leaves the choice to transformers.
        placement: how much of the sources to keep where (see `sources.Sources`); measured by default.
        cache: bytes of merged slices to keep besides those in the model; a quarter of what is free by default.
        shared: the cache that the node's workers share, or ``None``.
        workers: among how many what is free is divided, where `placement` or `cache` are not given.

    Raises:
        PoolError: transformers cannot load the model.
    """

    def __init__(
        self,
        pool: Pool,
        device: str | torch.device = "cpu",
        attn_implementation: str | None = None,
        placement: Placement | None = None,
        cache: int | None = None,
        shared: SharedCache | None = None,
        workers: int = 1,
    ) -> None:
        self.pool = pool
        self.dtype = pool.info.dtype
        module = _load(pool, attn_implementation).to(torch.device(device))
        self.model = LoadedModel(
            module, _tokenizer(pool), TORCH_DTYPES[self.dtype], module.device, str(pool.folder(pool.info.config_from))
        )
        self.sources = Sources(pool, module.device, placement or Placement.measured(module.device, workers))
        self._slices = ModuleSlices(module, pool.layout)
        self._shared = shared
        if cache is None:
            cache = int(free_memory(module.device) * CACHE_SHARE / workers)
        model = sum(self._slices.nbytes(slice_) for slice_ in pool.layout.slices)
        self._memory = MemoryCache(cache, start=model // 4)
        self._held: dict[SliceId, tuple[str, Merged]] = {}
        own = make_plan(pool.info.linear({pool.info.config_from: 1.0}), pool)
        given, stored = pool.checkpoints[pool.info.config_from], pool.stored[pool.info.config_from]
        for entry in own.slices:
            held = Merged(self._slices.held(entry.slice))
            # A tensor that the module keeps in another dtype is not what merging the same model would give it; nor is
            # one that an adapter changes, which the module was loaded without.
            same = all(tensor.dtype == self.model.dtype for tensor in held.tensors)
            same = same and not any(stored[name] in given.changed for name in entry.tensors)
            self._held[entry.slice] = entry.key if same else "", held

    def forget(self) -> None:
        """Take the model's slices for none that is known: the next plan is computed whole."""
        self._held = {slice_: ("", held) for slice_, (_, held) in self._held.items()}

    def close(self) -> None:
        """Leave the shared cache."""
        if self._shared is not None:
            self._shared.close()

    def apply(self, plan: Plan) -> MergeCount:
        """Make the model the one that `plan` describes, computing only slices that are nowhere to be had.

        Raises:
            RecipeError: the plan's dtype or slices are not the model's.
            EvomergeError: a slice cannot be merged; the model is then a mixture of two.
        """
        if plan.dtype != self.dtype:
            raise RecipeError(f"the recipe's dtype is {plan.dtype}", f"the resident model is in {self.dtype}")
        if {entry.slice for entry in plan.slices} != set(self.pool.layout.slices):
            raise RecipeError(
                f"the recipe makes {len(plan.slices)} slices",
                f"the resident model has the {len(self.pool.layout.slices)} of its {self.pool.layout.layers} layers",
                "recipes that change the depth are written out with `evomerge merge`",
            )
        count, start = MergeCount(), time.perf_counter()
        changed = []
        for entry in plan.slices:
            key, held = self._held[entry.slice]
            count.bytes += self._slices.nbytes(entry.slice)
            if key == entry.key:
                count.kept += 1
                count.saved += held.cost
            else:
                changed.append((entry, self._find(entry, count), key, held))
        # What is replaced goes into the cache before the rest is looked for there: slices may have changed places. The
        # model has its tensors until it gets others; should merging fail, they are known to be nobody's.
        for entry, _, key, held in changed:
            self._held[entry.slice] = "", Merged(held.tensors, owned=False)
            if key:
                self._memory.put(key, held)
            else:
                self._memory.recycle(held)
        missing = []
        for entry, found, _, _ in changed:
            found = found or self._cached(entry, count)
            if found is not None:
                self._take(entry, found)
            else:
                missing.append(entry)
        for batch in self._batches(missing):
            self._compute(batch, count)
        count.seconds = time.perf_counter() - start
        return count

    def _take(self, entry: SlicePlan, merged: Merged) -> None:
        """Make a merged slice the model's."""
        self._slices.swap(entry.slice, merged.tensors)
        self._held[entry.slice] = entry.key, merged

    def _find(self, entry: SlicePlan, count: MergeCount) -> Merged | None:
        """The slice from the nearest place that has it."""
        own = self._reference(entry)
        if own is not None:
            count.referenced += 1
            return own
        found = self._cached(entry, count)
        if found is not None:
            return found
        found = self._shared.get(entry.key) if self._shared is not None else None
        if found is None:
            return None
        count.shared += 1
        count.saved += found.cost
        if self.model.device.type == "cpu":
            return found
        return Merged(tuple(tensor.to(self.model.device) for tensor in found.tensors), found.cost)

    def _cached(self, entry: SlicePlan, count: MergeCount) -> Merged | None:
        """The slice from the worker's own cache."""
        found = self._memory.take(entry.key)
        if found is not None:
            count.memory += 1
            count.saved += found.cost
        return found

    def _batches(self, entries: Sequence[SlicePlan]) -> Iterator[list[SlicePlan]]:
        """Slices to merge at a time: on the CPU enough for every thread, elsewhere one."""
        batch: list[SlicePlan] = []
        size = 0
        for entry in entries:
            batch.append(entry)
            size += self._slices.nbytes(entry.slice)
            if size >= BATCH or self.model.device.type != "cpu":
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _reference(self, entry: SlicePlan) -> Merged | None:
        """A slice that is a source's own, where it lies; ``None`` where it must be copied."""
        source = entry.unchanged
        if source is None or source.made is not None or not self._slices.is_direct(entry.slice):
            return None
        tensors = []
        for name, (shape, dtype) in zip(source.tensors, self._slices.shapes(entry.slice), strict=True):
            if not self.pool.is_merged(name):
                return None
            tensor = self.sources.aligned(source.model, name)
            if tensor is None or tensor.dtype != dtype or dtype != self.model.dtype:
                return None
            tensors.append(tensor.view(shape))
        return Merged(tuple(tensors), owned=False)

    def _compute(self, entries: Sequence[SlicePlan], count: MergeCount) -> None:
        """Merge slices, each into memory of its own."""
        start = time.perf_counter()
        memories = [self._memory.empty(self._slices.shapes(entry.slice), self.model.device) for entry in entries]
        outs = [self._slices.out(entry.slice, memory) for entry, memory in zip(entries, memories, strict=True)]
        try:
            seconds = merge_slices(entries, self.sources, outs, self._made)
            for entry, out, memory in zip(entries, outs, memories, strict=True):
                self._slices.settle(entry.slice, out, memory)
        except BaseException:
            for memory in memories:
                self._memory.recycle(Merged(memory))
            raise
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
            seconds = [time.perf_counter() - start]
        for entry, memory, cost in zip(entries, memories, seconds, strict=True):
            merged = Merged(memory, cost)
            self._take(entry, merged)
            count.computed += 1
            count.computed_bytes += merged.nbytes
            if self._shared is not None:
                self._shared.offer(entry.key, merged)

    def _made(self, entry: SlicePlan) -> Mapping[str, torch.Tensor]:
        """The tensors of an intermediate's slice, which the next candidates of a lineage will ask for again."""
        kept = self._kept_stage(entry)
        return kept or self._merge_stage(entry, StageSlices(entry, self._merge_stage, self._kept_stage))

    def _kept_stage(self, entry: SlicePlan) -> Mapping[str, torch.Tensor] | None:
        """The same where it is in memory, ``None`` elsewhere."""
        merged = self._memory.take(f"intermediate {entry.key}")
        if merged is None:
            return None
        self._memory.put(f"intermediate {entry.key}", merged)
        return dict(zip(entry.tensors, merged.tensors, strict=True))

    def _merge_stage(
        self, entry: SlicePlan, made: Callable[[SlicePlan], Mapping[str, torch.Tensor]]
    ) -> Mapping[str, torch.Tensor]:
        """Merge it, and keep it for those who come."""
        start = time.perf_counter()
        tensors = merge_slice(entry, self.pool, sources=self.sources, made=made)
        self._memory.put(f"intermediate {entry.key}", Merged(tuple(tensors.values()), time.perf_counter() - start))
        return tensors


def _load(pool: Pool, attn_implementation: str | None) -> Any:
    """The model as `from_pretrained` loads it, in evaluation mode, its weights in memory of its own."""
    from transformers.utils import logging

    folder = str(pool.folder(pool.info.config_from))
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        module = model_class(pool.config, pool.trust_remote_code).from_pretrained(
            folder, dtype=TORCH_DTYPES[pool.info.dtype], trust_remote_code=pool.trust_remote_code, **options
        )
    except Exception as error:  # transformers raises whatever the architecture's code raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PoolError(f"transformers cannot load {folder} ({reason})") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    module.eval()
    for parameter in module.parameters():
        # Loading may leave them as views of the mapped file, or of larger storages.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return module


def _tokenizer(pool: Pool) -> Any:
    from transformers import AutoTokenizer

    folder = pool.folder(pool.tokenizer_from or pool.info.config_from)
    if not has_tokenizer(folder):
        return None
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=pool.trust_remote_code)

"""The resident model: built once, then moved from candidate to candidate slice by slice."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from evomerge.errors import RecipeError
from evomerge.merge.cache.memory_cache import START_SHARE, MemoryCache
from evomerge.merge.cache.merged_slice import Merged
from evomerge.merge.cache.shared_cache import SharedCache
from evomerge.merge.execution.copies_ahead import CopiesAhead
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.execution.finite_checks import FiniteChecks
from evomerge.merge.execution.parallel import merge_slices
from evomerge.merge.execution.sources import Placement, Sources
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan, SlicePlan, canonical_slice, origin_of
from evomerge.merge.resident.batches import Missing, batches, share_cost
from evomerge.merge.resident.budgets import Room, first_budgets
from evomerge.merge.resident.codecs import codec_of
from evomerge.merge.resident.head_slots import HeadSlots
from evomerge.merge.resident.hidden_states import HiddenStates, hidden_keys
from evomerge.merge.resident.kept_stages import KeptStages
from evomerge.merge.resident.layer_slots import LayerSlots
from evomerge.merge.resident.live_slices import LiveSlices
from evomerge.merge.resident.loading import holds, load_on
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.merge.resident.merge_progress import MergeProgress
from evomerge.merge.resident.module_slices import ModuleSlice, ModuleSlices
from evomerge.merge.resident.nearest_slices import NearestSlices
from evomerge.merge.resident.spread import SPREAD, anywhere, load_spread, moved, put, require_own_order
from evomerge.models.architecture.layout import skeleton
from evomerge.models.loaded import LoadedModel
from evomerge.models.pool import Pool
from evomerge.models.tokenizers import load_tokenizer
from evomerge.recipes.slices import SliceId


class Resident:
    """One transformers model in memory that is moved from plan to plan, of any number of layers.

    It begins as the model that gives the pool's configuration (see `loading`), so that computed buffers, attention
    implementation and generation settings are those of an ordinary load; its weights all come through plans. Slices
    are never written in place: a changed slice gets memory of its own and what it replaces goes into the cache, so that
    neither keeping nor fetching a slice moves a byte. Layers of a path are slots (see `slots`) that point to the
    tensors of the source layers, and what they add to the residual stream is scaled on its way; merged slices that
    repeat are held once.

    Args:
        pool: the source models.
        device: where the model lives and merging happens; ``spread`` for all GPUs, of which the first merges.
        attn_implementation: as in `from_pretrained`; ``None`` leaves the choice to transformers.
        placement: how much of the sources to keep where (see `sources.Sources`); measured by default.
        cache: bytes of merged slices to keep besides those in the model; a quarter of what is free by default.
        shared: the cache that the node's workers share, or ``None``.
        workers: among how many the host's free memory is divided, where `placement` or `cache` are not given.
        sharing: how many of them share a GPU, likewise.
        gpu: bytes of a GPU to count with; those that it has by default.
        states: bytes of hidden states to keep, 0 for none, as for ``spread``; an eighth of what is free by default.
        quantise: how the weights of the layers' linear modules are kept (see `codecs`), on one device; ``None`` for in
            full precision. A slice is then merged in full precision as ever, quantised into memory of its own, and
            kept, found and cached so: only slices that are being merged are there in full precision.

    Attributes:
        full: whether the next plans are held in full precision all the same.
        progress: how far the model is on its way to the plan that is applied.

    Raises:
        ConfigError: the model or the device cannot be quantised like this.
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
        sharing: int = 1,
        gpu: int | None = None,
        states: int | None = None,
        quantise: str | None = None,
    ) -> None:
        self.pool, self.dtype, self._spread = pool, pool.info.dtype, device == SPREAD
        self.full, self._quantise = quantise is None, quantise
        attn, codec = attn_implementation, codec_of(quantise, torch.device(device)) if quantise is not None else None
        module = load_spread(pool, attn) if self._spread else load_on(device, pool, attn, codec)
        self.model = LoadedModel(
            module,
            load_tokenizer(pool.tokenizer_folder, pool.trust_remote_code),
            *(TORCH_DTYPES[self.dtype], module.device, str(pool.folder(pool.info.config_from)), self.spare_memory),
            encoder_folder=pool.encoder_folder,
            rest=getattr(pool.config, "rest", None),
        )
        devices = tuple(dict.fromkeys(parameter.device for parameter in module.parameters()))
        states, first = 0 if self._spread else states, first_budgets(module.device, workers)
        self._room = Room(devices, workers, sharing, gpu, placement is None, cache, states)
        self._states = HiddenStates(first.states if states is None else states)
        self.model.states = None if states == 0 else self._states
        peers = [device for device in devices if device.type == module.device.type]
        self.sources = Sources(pool, module.device, placement or first.placement, peers)
        self.progress = MergeProgress(self.sources.notes)
        # Converters look at the configuration and shapes of a module, which must not change under them.
        reference = skeleton(pool.config, pool.trust_remote_code) if pool.layout.joins else module
        slices = ModuleSlices(module, pool.layout, reference)
        self._outer = {s: slices.of(s) for s in pool.layout.slices if s.layer is None}
        self._layer_slots, self._heads = LayerSlots(module, pool, slices), HeadSlots(module, pool, self.model.dtype)
        self._shared, self._places = shared, set(self._own().values())
        start = int(START_SHARE * sum(place.held_nbytes(self.full) for place in self._places))
        self._memory = MemoryCache(first.cache if cache is None else cache, start)
        self._live = LiveSlices(self._memory)
        self._stages = KeptStages(self.sources, self._memory, self._live, shared)
        self._nearest = NearestSlices(self._live, self._memory, shared, self.sources, self.model.dtype)
        own = make_plan(pool.info.linear({pool.info.config_from: 1.0}), pool)
        for entry in own.slices:
            place = self._own()[entry.slice]
            # A tensor that the module keeps in another dtype is not what merging the same model would give it; and
            # whatever loading made of a slice, only what is the plan's bit for bit is taken for it.
            if all(dtype == self.model.dtype for _, dtype in place.shapes) and holds(pool, entry, place):
                place.key = put(entry, place, self.model.device).key
                self._live.claim(place.key, place.held)
        if codec is not None:  # whose linear layers have no weights yet
            self.apply(own)

    def _own(self) -> dict[SliceId, ModuleSlice]:
        """The slices that the model was loaded with."""
        layers = enumerate(self._layer_slots.own)
        return self._outer | {SliceId(c, i): place for i, slot in layers for c, place in slot.slices.items()}

    def forget(self) -> None:
        """Take the model's slices for none that is known: the next plan is computed whole."""
        self._states.begin(())
        self._live.forget(self._layer_slots.every() | self._places)

    def use_room(self) -> None:
        """Keep sources, merged slices and hidden states in what is left of a GPU after a candidate was scored; once."""
        self._room.use(self.sources, self._memory, self._states)

    def spare_memory(self) -> bool:
        """Let go of what is only kept to save time: hidden states, merged slices, sources; says whether any was."""
        self._room.settled = True
        self.pool.release()
        if self._states.clear() or self._memory.clear():
            return True
        self._nearest.references.clear()
        return self.sources.release()

    def close(self) -> None:
        """Leave the shared cache and give all memory back, whoever still holds the model: it has no weights left."""
        if self._shared is not None:
            self._shared.close()
        self.forget()
        for place in self._layer_slots.every() | self._places:
            place.empty()
        self._heads.empty()
        for kept in (self._nearest.references, self._memory, self._states):
            kept.clear()
        self.sources.close()

    def apply(self, plan: Plan) -> MergeCount:
        """Make the model the one that `plan` describes, computing only slices that are nowhere to be had.

        Raises:
            RecipeError: the plan's dtype is not the model's, or layers cannot be put where it wants them.
            EvomergeError: a slice cannot be merged; the model is then a mixture of two.
        """
        if plan.dtype != self.dtype:
            raise RecipeError(f"the recipe's dtype is {plan.dtype}", f"the resident model is in {self.dtype}")
        self._states.begin(())
        try:
            self._heads.put(plan.head)
            return self._apply(plan)
        finally:
            self.progress.end()

    def _apply(self, plan: Plan) -> MergeCount:
        count, start = MergeCount(), time.perf_counter()
        places = self._arranged(plan)
        self.progress.begin(sum(place.key != entry.key for entry, place in places))
        changed: list[tuple[SlicePlan, ModuleSlice, Merged | None]] = []
        self._stages.expect(plan, sum(place.held_nbytes(self.full) for _, place in places))
        for entry, place in places:
            count.bytes += place.held_nbytes(self.full)
            if place.key == entry.key:
                count.kept += 1
                count.saved += place.held.cost
            else:
                found = self._nearest.find(entry, place, self._quantises(place), count)
                changed.append((entry, place, found))
        self._leave({place for _, place in places})
        # The model has what is replaced until it gets others; should merging fail, that is known to be nobody's.
        for _, place, _ in changed:
            self._live.release(place)
        missing: dict[str, Missing] = {}
        for entry, place, found in changed:
            if found is not None:
                place.take(entry.key, found)
                self.progress.step()
            else:
                missing.setdefault(entry.key, (entry, []))[1].append(place)
        self._compute(missing.values(), count)
        self._states.begin([self._marked(key) for key in hidden_keys(plan)])
        count.seconds, count.noted = time.perf_counter() - start, self.progress.noted
        return count

    def _arranged(self, plan: Plan) -> list[tuple[SlicePlan, ModuleSlice]]:
        """The plan's slices, as they are to be held, and the places for them, once the layers are those of its path.

        Raises:
            RecipeError: the layers cannot be put there, or some slice has no place.
        """
        layers: dict[int, list[SlicePlan]] = {}
        places: list[tuple[SlicePlan, ModuleSlice]] = []
        for entry in plan.slices:
            if entry.slice.layer is not None:
                layers.setdefault(entry.slice.layer, []).append(entry)
            elif entry.slice in self._outer:
                places.append((canonical_slice(entry), self._outer[entry.slice]))
        origins = [origin_of(layers[layer][0]) for layer in range(len(layers))]
        if self._spread:
            require_own_order(origins, len(self._layer_slots.own))
        slots = self._layer_slots.arrange(origins)
        for slot, entries in zip(slots, layers.values(), strict=True):
            for entry in entries:
                component = entry.slice.component
                if component in slot.slices:
                    places.append((canonical_slice(entry), slot.slices[component]))
                    self._layer_slots.scale(slot, component, entry.scale)
        wanted = len(self._outer) + sum(len(slot.slices) for slot in slots)
        if not len(places) == wanted == len(plan.slices):
            raise RecipeError(
                f"the recipe makes {len(plan.slices)} slices",
                f"a resident model with its {len(slots)} layers has {wanted}",
            )
        return [(self._put(entry, place), place) for entry, place in places]

    def _put(self, entry: SlicePlan, place: ModuleSlice) -> SlicePlan:
        """A slice's plan with the key of what the place will hold: where it lies, and how it is quantised."""
        if self._quantises(place):
            return replace(entry, key=self._marked(entry.key))
        return put(entry, place, self.model.device)

    def _marked(self, key: str) -> str:
        return key if self.full else f"{key}+{self._quantise}"

    def _quantises(self, place: ModuleSlice) -> bool:
        """Whether a place is to hold its slice quantised."""
        return place.may_quantise and not self.full

    def _leave(self, now: set[ModuleSlice]) -> None:
        """Let go of what was merged for layers that are no longer in the model."""
        for place in self._places - now:
            if place.key not in self._nearest.references:  # a source's tensors may stay until they are wanted again
                self._live.release(place)
                place.empty()
        self._places = now

    def _compute(self, missing: Iterable[Missing], count: MergeCount) -> None:
        """Merge slices, each into memory of its own, for all places that want it."""
        start, checks, missing = time.perf_counter(), FiniteChecks(), list(missing)
        made: list[tuple[SlicePlan, Merged]] = []
        try:
            copies = self.sources.ahead([entry for entry, _ in missing])
            for batch in batches(missing, self.model.device):
                made += self._merge_batch(batch, count, checks, copies)
            checks.settle()
        except BaseException:
            if not checks.settled:
                self.forget()  # nobody has looked at what the device has made so far
            raise
        if self.model.device.type != "cpu":  # which was waited for once: shares of the time by size
            share_cost([merged for _, merged in made], time.perf_counter() - start)
        if self._shared is not None:
            for entry, merged in made:
                self._shared.offer(anywhere(entry.key), merged)

    def _merge_batch(
        self, batch: Sequence[Missing], count: MergeCount, checks: FiniteChecks, copies: CopiesAhead | None
    ) -> Iterator[tuple[SlicePlan, Merged]]:
        """Merge some of them; gives what was made."""
        entries = [entry for entry, _ in batch]
        memories = [self._memory.empty(places[0].shapes, self.model.device) for _, places in batch]
        try:
            outs = [
                places[0].out(entry.tensors, memory) for (entry, places), memory in zip(batch, memories, strict=True)
            ]
            seconds = merge_slices(entries, self.sources, outs, self._stages, self.progress.step, checks, copies)
            for (_, places), out, memory in zip(batch, outs, memories, strict=True):
                places[0].settle(out, memory)
        except BaseException:
            for memory in memories:
                self._memory.recycle(Merged(memory))
            raise
        for (entry, places), memory, cost in zip(batch, memories, seconds, strict=True):
            merged = Merged(memory, cost)
            if self._quantises(places[0]):
                into = self._memory.empty(places[0].quantised_shapes, self.model.device)
                places[0].quantise(memory, into)
                self._memory.recycle(merged)
                merged = Merged(into, cost)
            if places[0].device != self.model.device:
                merged = moved(merged, places[0].device)
                self._memory.recycle(Merged(memory))
            for place in places:
                self._live.claim(entry.key, merged)
                place.take(entry.key, merged)
            count.computed += 1
            self.progress.done += len(places) - 1
            count.kept += len(places) - 1
            count.computed_bytes += merged.nbytes
            yield entry, merged

"""What the workers of a search will take of memory: every part as its owner says, before anything is loaded."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from evomerge.config.construct import arguments_of
from evomerge.config.placing import placed
from evomerge.config.schema import Config
from evomerge.errors import EvomergeError
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.devices import computes_on_host, gpus_of_worker
from evomerge.evaluation.limits import sharing
from evomerge.evaluation.vllm_memory import engine_parts
from evomerge.evaluation.worker_builder import workers_of
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.execution.notes_memory import device_sources, load_kernels, notes_memory, scratch_memory
from evomerge.merge.execution.sources import DEVICE_SHARE, NOTES_SHARE
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.budgets import CACHE_SHARE, STATES_SHARE, layer_bytes
from evomerge.merge.resident.resident_memory import model_bytes, resident_memory, states_memory
from evomerge.models.loaded import ModelOutline
from evomerge.models.pool import Pool
from evomerge.models.tokenizers import load_tokenizer
from evomerge.recipes.recipe import Recipe
from evomerge.search.starts import compared_recipes
from evomerge.session.engines import engine_of
from evomerge.session.gpu_plan import GpuPlan, fewest_gpus, plan_gpu
from evomerge.session.parts import Parts
from evomerge.utils.memory import MemoryPart, Place, free_host_memory, machine_memory, peak, process_memory
from evomerge.utils.sizes import size_text

_LOG = logging.getLogger(__name__)
_SAMPLES = 3  # genomes of a search space, besides its start


@dataclass(frozen=True)
class MemoryEstimate:
    """What a search takes of memory.

    Attributes:
        parts: of one worker, those that a machine's workers share among them.
        workers: how many there are.
        on_host: whether they compute on the processor.
        apart: whether they are other processes than the search, which then has one of its own.
        host: bytes of main memory that this machine, or its container, has; 0 where that is not known.
        device: bytes that a worker has of its accelerators; 0 where there is none here and none was named.
        gpu: what a worker does with a GPU, where there is or was named one.
    """

    parts: tuple[MemoryPart, ...]
    workers: int
    on_host: bool
    apart: bool = False
    host: int = 0
    device: int = 0
    gpu: GpuPlan | None = None

    def at(self, place: Place) -> tuple[MemoryPart, ...]:
        """The parts in one place."""
        return tuple(part for part in self.parts if part.place == place)

    def worker(self, place: Place = "host") -> int:
        """Bytes that one worker takes at its worst moment."""
        return peak(self.at(place))

    def machine(self, *, bounds: bool = False, mapped: bool = True) -> int:
        """Bytes of main memory of a machine with all workers.

        Args:
            bounds: count what each part may grow to.
            mapped: count what the system may drop and read again.
        """
        own = [part for part in self.at("host") if not part.per_machine]
        shared = [part for part in self.at("host") if part.per_machine and (mapped or part.name != "sources")]
        process = sum(part.nbytes for part in own if part.name == "process")
        return self.workers * peak(own, bounds=bounds) + peak(shared, bounds=bounds) + (process if self.apart else 0)


def estimate_memory(config: Config, parts: Parts) -> MemoryEstimate | None:
    """What the workers of a search take; ``None`` where there is no pool.

    Raises:
        EvomergeError: prompts that cannot be built.
    """
    pool = parts.pool
    if pool is None:
        return None
    on_host = computes_on_host(config.evaluator)
    place: Place = "host" if on_host else "device"
    workers = workers_of(parts.evaluator)
    plans = sample_plans(config, parts, pool)
    cache: CacheSettings = getattr(parts.evaluator, "cache_settings", CacheSettings())
    engine = engine_of(config)
    full = parts.held_out is not None or bool(parts.finalists)
    full = full and not engine.quantises("held_out")
    weights = model_bytes(pool, plans, None if full else engine.quantise)
    room = max(0, free_host_memory() - (workers * weights if on_host else 0))
    forwards, scratch = _forwards(parts, pool, plans, on_host), scratch_memory(plans, pool, on_host)
    if engine.is_vllm:
        cache = replace(cache, states=0)
        forwards = engine_parts(pool, cache, engine) if on_host else []
        forwards += parts.adapters.memory if on_host and parts.adapters is not None else []
    if engine.is_server:  # which has the models; here are the adapters' files
        process = MemoryPart("process", process_memory(), "Python, its libraries and the items")
        shipped = getattr(parts.evaluator, "built_from", "") == "shipped worker"
        return MemoryEstimate((process, *pool.memory()), workers, True, shipped, machine_memory(), 0, None)
    size = 0 if on_host else cache.gpu or _gpu_bytes()
    plan, has = None, 0
    if size:
        # Of merging and scoring the larger: they are never there together.
        need = max((part.nbytes for part in (*forwards, *scratch)), default=0) if forwards else None
        shared_by, piece = sharing(float(config.evaluator.get("gpus_per_worker") or 0)), _largest_layer(pool)
        gpus = gpus_of_worker(config.evaluator) or fewest_gpus(size, weights, need, piece)
        plan = plan_gpu(
            size,
            shared_by,
            weights,
            need,
            pool.nbytes,
            room // workers,
            layer_bytes(pool),
            workers,
            gpus,
            piece,
        )
        has = size * gpus // shared_by
    elsewhere = int(room * CACHE_SHARE / workers)
    budget = cache.memory if cache.memory is not None else plan.cache if plan else elsewhere
    found = pool.memory()
    found += resident_memory(pool, plans, budget, place, engine.quantise, full)
    most = plan.states if plan else int(room * STATES_SHARE / workers)
    if pool.info.network is None:
        found.append(states_memory(most if cache.states is None else cache.states, place))
    if on_host:
        found += notes_memory(plans, pool, int(room * NOTES_SHARE / workers))
    elif plan is not None:
        found += device_sources(pool, plan.device, plan.pinned, plan.staging)
    else:
        found += device_sources(pool, int(room * DEVICE_SHARE / workers), 0)
    found += scratch
    found += forwards
    if cache.shared == "memory":
        most = cache.shared_size or room // 4
        text = "merged layers for all workers"
        found.append(MemoryPart("shared", 0, text, "evaluator.shared_cache_size", most=most, per_machine=True))
    # Last: the others have imported what a worker imports.
    if on_host:
        load_kernels()
    process = MemoryPart("process", process_memory(), "Python, its libraries and the items")
    apart = getattr(parts.evaluator, "built_from", "") == "shipped worker"
    return MemoryEstimate((process, *found), workers, on_host, apart, machine_memory(), has, plan)


def memory_caution(found: MemoryEstimate) -> str:
    """What to change where a search takes more than this machine has; empty where it does not."""
    for place, has in (("device", found.device), ("host", found.host)):
        if not has:
            continue
        own = found.at(place)  # type: ignore[arg-type]
        needs = found.machine(mapped=False) if place == "host" else peak(own)
        most = found.machine(bounds=True, mapped=False) if place == "host" else peak(own, bounds=True)
        where = "this machine" if place == "host" else _device(found.gpu)
        if needs > has:
            less = _less(found, own)
            return f"the search needs about {size_text(needs)} of memory, {where} has {size_text(has)}: {less}"
        if most > has:
            growing = max(own, key=lambda part: part.bound - part.nbytes)
            return (
                f"with what {growing.name} may grow to, the search takes {size_text(most)} of memory, {where} has "
                f"{size_text(has)}: lower {growing.key}"
            )
        if place == "host" and found.machine() > has:
            return (
                f"the search needs about {size_text(needs)} of memory beside its sources, which leaves too little of "
                f"{size_text(has)} to keep their files: they will be read from the disk again; {_less(found, own)}"
            )
    return ""


def _device(plan: GpuPlan | None) -> str:
    """What a worker has of GPUs, for people."""
    if plan is None or plan.gpus == plan.sharing == 1:
        return "the device"
    return f"its {plan.gpus} GPUs" if plan.gpus > 1 else f"its share of 1/{plan.sharing} of the device"


def _largest_layer(pool: Pool) -> int:
    """Bytes of the largest part of a model that lies on one GPU: a layer, or what comes before and after them."""
    sizes: dict[Any, int] = {}
    for slice_, size in zip(pool.info.slices, pool.info.sizes, strict=True):
        part = slice_.component if slice_.layer is None else slice_.layer
        sizes[part] = sizes.get(part, 0) + size
    return max(sizes.values(), default=0) * TORCH_DTYPES[pool.info.dtype].itemsize


def _less(found: MemoryEstimate, parts: Sequence[MemoryPart]) -> str:
    """Which part to make smaller, by which key."""
    able = [part for part in parts if part.key and part.nbytes]
    advice = []
    if able:
        largest = max(able, key=lambda part: part.nbytes)
        advice.append(f"{largest.name} take {size_text(largest.nbytes)}, lower {largest.key}")
    if found.workers > 1:
        advice.append(f"each of {found.workers} workers takes {size_text(found.worker())}, lower evaluator.workers")
    return "; ".join(advice) or "use a larger machine"


def sample_plans(config: Config, parts: Parts, pool: Pool) -> list[Plan]:
    """Of the pool's own models where they are scored, and of some candidates of every phase."""
    scored = config.search.baselines or parts.held_out is not None
    recipes: list[Recipe | None] = [*compared_recipes(pool.info, parts.space).values()] if scored else []
    rng = np.random.default_rng(0)
    for space in parts.spaces:
        spec: Any = space.spec
        for draw in range(1 + _SAMPLES):
            with contextlib.suppress(Exception):  # some genomes have no recipe; others need more than there is now
                recipes.append(space.decode(spec.sample(rng) if draw else spec.initial))
    plans = []
    for recipe in recipes:
        with contextlib.suppress(Exception):
            if recipe is not None:
                plans.append(make_plan(recipe, pool))
    return plans


def _forwards(parts: Parts, pool: Pool, plans: Sequence[Plan], on_host: bool) -> list[MemoryPart]:
    """The largest of what scoring by each of the fitnesses takes."""
    tokenizer = load_tokenizer(pool.tokenizer_folder, pool.trust_remote_code)
    numbers = (entry.slice.layer for plan in plans for entry in plan.slices if entry.slice.layer is not None)
    layers = 1 + max(numbers, default=pool.info.layers - 1)
    outline = ModelOutline(pool.config, tokenizer, TORCH_DTYPES[pool.info.dtype], layers, on_host)
    found: list[MemoryPart] = []
    for node in ("fitness", "cheap", "validation", "held_out"):
        fitness = getattr(parts, node)
        asked: Callable[[ModelOutline], Sequence[MemoryPart]] | None = getattr(fitness, "memory", None)
        if asked is None:
            continue
        try:
            with placed(node, arguments_of(fitness)):
                own = asked(outline)
        except EvomergeError:
            raise
        except Exception:  # of a task or tokenizer that scoring may still get along with
            _LOG.info("what forwards take is not known", exc_info=True)
            continue
        found += [replace(part, key=f"{node}.{part.key}" if part.key else "") for part in own]
    names = dict.fromkeys(part.name for part in found)
    return [max((part for part in found if part.name == name), key=lambda part: part.nbytes) for name in names]


def _gpu_bytes() -> int:
    """Bytes of the first GPU; 0 where there is none here."""
    return int(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else 0

"""What a resident model takes, and the merged slices that it keeps."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.merge.cache.memory_cache import SPARE, START_SHARE
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.planning.slice_plan import Plan, canonical_slice
from evomerge.merge.resident.batches import BATCH
from evomerge.models.pool import Pool
from evomerge.utils.memory import MemoryPart, Place


def model_bytes(pool: Pool, plans: Sequence[Plan]) -> int:
    """Weights of the largest of some plans' models, where every slice is held once however often it repeats.

    At least those of the model that is loaded to begin with.
    """
    counts = dict(zip(pool.info.slices, pool.info.sizes, strict=True))
    loaded = sum(counts.values())
    width = TORCH_DTYPES[pool.info.dtype].itemsize
    sizes = dict(tensor for tensors in pool.info.tensors for tensor in tensors)
    found = [loaded]
    for plan in plans:
        held = {canonical_slice(entry).key: entry for entry in plan.slices}
        found.append(sum(sizes[name] for entry in held.values() for name in entry.like))
    return width * max(found)


def resident_memory(pool: Pool, plans: Sequence[Plan], budget: int, place: Place) -> list[MemoryPart]:
    """The model and the cache of merged slices of one worker.

    Args:
        pool: the source models.
        plans: of some candidates.
        budget: bytes of merged slices that may be kept.
        place: where the model lives.
    """
    weights = model_bytes(pool, plans)
    # What is replaced stays until the slices that replace it are merged; some of it stays for the next ones.
    working = min(weights, BATCH) if weights > SPARE else 0
    spare = SPARE if weights > 2 * SPARE else 0
    start = min(int(START_SHARE * weights), budget)
    return [
        MemoryPart("model", weights + working + spare, "weights, and slices being replaced", place=place),
        MemoryPart("cache", start, "merged layers that may come back", "evaluator.cache", most=budget, place=place),
    ]


def states_memory(budget: int, place: Place) -> MemoryPart:
    """The hidden states that one worker keeps from candidate to candidate, within a budget of bytes."""
    text = "hidden states below new layers"
    return MemoryPart("states", 0, text, "evaluator.hidden_states", most=budget, place=place)

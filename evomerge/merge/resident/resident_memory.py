"""What a resident model takes, and the merged slices that it keeps."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.merge.cache.memory_cache import SPARE, START_SHARE
from evomerge.merge.cache.merged_slice import size_of
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.planning.slice_plan import Plan, canonical_slice
from evomerge.merge.resident.batches import BATCH
from evomerge.merge.resident.codec_shapes import quantised_shapes
from evomerge.merge.resident.quantised_linear import linears_of, require_linears
from evomerge.models.architecture.layout import skeleton
from evomerge.models.pool import Pool
from evomerge.utils.memory import MemoryPart, Place


def tensor_bytes(pool: Pool, quantise: str | None = None) -> dict[str, int]:
    """Bytes of every tensor of the pool's layout as a resident model holds it.

    Args:
        pool: the source models.
        quantise: as what linear layers are kept; ``None`` for in full precision.
    """
    width = TORCH_DTYPES[pool.info.dtype].itemsize
    found = {name: width * size for tensors in pool.info.tensors for name, size in tensors}
    if quantise is None:
        return found
    linears = linears_of(skeleton(pool.config, pool.trust_remote_code))
    for name in found:
        linear = linears.get(pool.layout.parameters[name].removesuffix(".weight"))
        if linear is not None and pool.layout.parameters[name].endswith(".weight"):
            # Of one of several that are joined its share.
            held, whole = size_of(quantised_shapes(quantise, linear.weight.shape)), width * linear.weight.numel()
            found[name] = found[name] * held // whole
    return found


def quantised_bytes(pool: Pool, quantise: str) -> int:
    """Bytes of the model that gives the pool's configuration, with its linear layers quantised.

    Raises:
        ConfigError: it has none in its layers.
    """
    module = skeleton(pool.config, pool.trust_remote_code)
    require_linears(linears_of(module), type(module).__name__)
    return sum(tensor_bytes(pool, quantise).values())


def model_bytes(pool: Pool, plans: Sequence[Plan], quantise: str | None = None) -> int:
    """Weights of the largest of some plans' models, where every slice is held once however often it repeats.

    At least those of the model that is loaded to begin with.
    """
    sizes = tensor_bytes(pool, quantise)
    found = [sum(sizes.values())]
    for plan in plans:
        held = {canonical_slice(entry).key: entry for entry in plan.slices}
        found.append(sum(sizes[name] for entry in held.values() for name in entry.like))
    return max(found)


def resident_memory(
    pool: Pool, plans: Sequence[Plan], budget: int, place: Place, quantise: str | None = None, full: bool = True
) -> list[MemoryPart]:
    """The model and the cache of merged slices of one worker.

    Args:
        pool: the source models.
        plans: of some candidates.
        budget: bytes of merged slices that may be kept.
        place: where the model lives.
        quantise: as what its linear layers are kept; ``None`` for in full precision.
        full: whether it is in full precision in the end all the same.
    """
    weights = model_bytes(pool, plans)
    # What is replaced stays until the slices that replace it are merged; some of it stays for the next ones.
    working = min(weights, BATCH) if weights > SPARE else 0
    spare = SPARE if weights > 2 * SPARE else 0
    held = weights if quantise is None else model_bytes(pool, plans, quantise)
    start = min(int(START_SHARE * held), budget)
    text = "weights, and slices being replaced"
    if quantise is not None:
        # What is merged is there in full precision before it is quantised: some slices, or one on a device.
        working = min(weights, largest_slice(pool) + (BATCH if place == "host" else 0))
        text = f"weights in {quantise}, and slices being merged"
    parts = [MemoryPart("model", held + working + spare, text, place=place)]
    if full and weights > held:
        text = "the same weights in full precision, for finalists and held-out items"
        parts.append(MemoryPart("full", weights - held, text, "evaluator.quantise_held_out", place=place))
    return [
        *parts,
        MemoryPart("cache", start, "merged layers that may come back", "evaluator.cache", most=budget, place=place),
    ]


def largest_slice(pool: Pool) -> int:
    """Bytes of the slice of a layer that has most, in full precision."""
    sizes = [size for own, size in zip(pool.info.slices, pool.info.sizes, strict=True) if own.layer is not None]
    return max(sizes, default=0) * TORCH_DTYPES[pool.info.dtype].itemsize


def states_memory(budget: int, place: Place) -> MemoryPart:
    """The hidden states that one worker keeps from candidate to candidate, within a budget of bytes."""
    text = "hidden states below new layers"
    return MemoryPart("states", 0, text, "evaluator.hidden_states", most=budget, place=place)

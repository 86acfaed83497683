"""The factors of sources that are adapters on a merge's base, for methods that take them apart."""

from __future__ import annotations

from evomerge.merge.methods.derived import Pair
from evomerge.merge.planning.slice_plan import Part, Source
from evomerge.models.checkpoints.folding import FoldedCheckpoint
from evomerge.models.pool import Pool


def adapter_pairs(pool: Pool, part: Part, index: int) -> list[Pair | None]:
    """Of every source of a tensor the factors that its adapter adds to the base's, the scale in the first.

    Args:
        pool: the source models.
        part: of the slice, with a base.
        index: of the tensor within the slice.

    Returns:
        ``(b, a)`` in float32, of rank 0 where the adapter leaves the tensor alone; ``None`` for intermediates, models
        that are no adapter on the base, and tensors that an adapter holds whole or adds more to.
    """
    return [_pair(pool, source, part.base, index) for source in part.sources]


def known_pairs(pool: Pool, part: Part, index: int) -> list[bool]:
    """Of every source whether `adapter_pairs` has factors of it, without reading them."""
    return [_adapter(pool, source, part.base, index) is not None for source in part.sources]


def _pair(pool: Pool, source: Source, base: Source | None, index: int) -> Pair | None:
    checkpoint = _adapter(pool, source, base, index)
    return None if checkpoint is None else checkpoint.factors(pool.stored[source.model][source.tensors[index]])


def _adapter(pool: Pool, source: Source, base: Source | None, index: int) -> FoldedCheckpoint | None:
    """The source, where it is an adapter on the base with factors of this tensor."""
    checkpoint = pool.checkpoints.get(source.model) if source.made is None else None
    below = pool.checkpoints.get(base.model) if base is not None and base.made is None else None
    if base is None or below is None or not isinstance(checkpoint, FoldedCheckpoint):
        return None
    stored = pool.stored[source.model][source.tensors[index]]
    alike = stored == pool.stored[base.model][base.tensors[index]]
    if isinstance(below, FoldedCheckpoint) or checkpoint.base.folder != below.folder or not alike:
        return None
    return checkpoint if checkpoint.has_factors(stored) else None

"""Which slices are the same in every model of a pool: a merge of them is the slice itself, and no gene changes it."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.models.architecture.layout import Layout
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.checkpoints.weight_files import same_bytes
from evomerge.recipes.slices import SliceId


def equal_slices(
    layout: Layout, checkpoints: Mapping[str, Checkpoint], stored: Mapping[str, Mapping[str, str]]
) -> tuple[SliceId, ...]:
    """The slices of which all models, the base included, hold the same bits, in order; none for a single model.

    Tensors that lie in one file, as those of adapters on one base do where no adapter changes them, are equal without
    being read. Others are read to the first difference, which is within the first 4 kB of most that were trained: only
    what is equal is read whole, once. A tensor that an adapter computes counts as different, whatever it comes to.

    Args:
        layout: of the pool, whose models all have its depth.
        checkpoints: by model.
        stored: by model: layout tensor name -> name in its checkpoint.

    Raises:
        PoolError: a file cannot be read.
    """
    first, *others = checkpoints
    if not others:
        return ()

    def same(name: str) -> bool:
        wanted = checkpoints[first].stored(stored[first][name])
        found = (checkpoints[other].stored(stored[other][name]) for other in others)
        return wanted is not None and all(own is not None and same_bytes(wanted, own) for own in found)

    merged = {slice_: [n for n in names if n not in layout.integers] for slice_, names in layout.tensors.items()}
    return tuple(slice_ for slice_ in layout.slices if merged[slice_] and all(map(same, merged[slice_])))

"""Which images batch-norm statistics are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.errors import FitnessError
from fitness._images.pixels import Pixels, processed
from fitness._images.sources import ImageItem, evenly
from fitness._images.terms import BatchNormTerm


def statistics_of(
    term: BatchNormTerm, tasks: Mapping[str, Pixels], others: Sequence[ImageItem], processor: Any
) -> tuple[Pixels, ...]:
    """Pixels of batch-norm statistics, mixed, in batches of sizes that differ by one at most.

    Args:
        term: how many, and in which batches.
        tasks: by name the processed images of the search.
        others: that they are drawn from instead; empty for the tasks'.
        processor: of the model.

    Raises:
        FitnessError: fewer than two images, of which there is no variance.
    """
    if others:
        chosen = [others[i] for i in evenly(["" for _ in others], term.images, term.seed)]
        pixels = processed(chosen, processor, 2**62, "")
    else:
        names = [name for name, own in tasks.items() for _ in own]
        every = [(name, i) for name, own in tasks.items() for i in range(len(own))]
        pixels = np.stack([tasks[every[k][0]][every[k][1]] for k in evenly(names, term.images, term.seed)])
    if len(pixels) < 2:
        raise FitnessError("batch-norm statistics are of one image", "2 or more", "set fitness.batch_norm.folder")
    order = np.random.default_rng(term.seed).permutation(len(pixels))
    return tuple(pixels[own] for own in np.array_split(order, min(-(-len(order) // term.batch_size), len(order) // 2)))

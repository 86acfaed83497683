"""Blocks: fixed shares of all tasks' documents, for strategies that stop an evaluation early."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def spread(counts: Mapping[str, int], block_size: int | None, seed: int) -> list[dict[str, list[int]]]:
    """Documents of every block by task: shuffled, each block with its share of every task, in document order."""
    rng = np.random.default_rng(seed)
    order: list[tuple[float, str, int]] = []
    for name, count in counts.items():
        shuffled = rng.permutation(count).tolist()
        order += [((rank + 0.5) / count, name, place) for rank, place in enumerate(shuffled)]
    order.sort(key=lambda entry: entry[0])  # stable: tasks keep their order within a tie
    size = block_size or len(order)
    blocks = []
    for first in range(0, len(order), size):
        part = order[first : first + size]
        blocks.append({name: sorted(place for _, of, place in part if of == name) for name in counts})
    return blocks

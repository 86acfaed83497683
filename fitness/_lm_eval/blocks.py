"""Blocks of documents: fixed parts of all tasks, for strategies that stop an evaluation early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.errors import ConfigError


def check_block_size(block_size: Any) -> None:
    """Raise `ConfigError` unless `block_size` is None or a count of at least 1."""
    if block_size is not None and (not isinstance(block_size, int) or isinstance(block_size, bool) or block_size < 1):
        raise ConfigError(f"block_size is {block_size!r}", "a whole number, 1 or more")


def spread(counts: Mapping[str, int], block_size: int | None, seed: int) -> list[dict[str, list[int]]]:
    """Documents of every block by task: shuffled, each block with its share of every task, in document order.

    Args:
        counts: documents of each task.
        block_size: documents in a block; None for one block.
        seed: of the shuffle.
    """
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

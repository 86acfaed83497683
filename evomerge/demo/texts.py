"""The texts that more trainings on a demo pool may learn from: none of its tasks' items."""

from __future__ import annotations

import numpy as np

from evomerge.demo.items import Texts
from evomerge.demo.pool import HELD_OUT_ITEMS, QUICK_HELD_OUT_ITEMS, QUICK_SEARCH_ITEMS, SEARCH_ITEMS
from evomerge.demo.tasks import J_LANGUAGE, draw_items


def texts_to_learn(stream: np.random.SeedSequence, quick: bool) -> Texts:
    """What draws the texts, with the items of a pool withheld.

    Args:
        stream: the first one of the pool's seed, by which it drew its items.
        quick: whether the pool is a quick one.
    """
    counts = (QUICK_SEARCH_ITEMS, QUICK_HELD_OUT_ITEMS) if quick else (SEARCH_ITEMS, HELD_OUT_ITEMS)
    items = draw_items(*counts, np.random.default_rng(stream))
    withheld = frozenset(
        question for task in (J_LANGUAGE, f"{J_LANGUAGE}_held_out") for question in items.of_task[task]
    )
    return Texts(list(items.sorting_to_learn), withheld)

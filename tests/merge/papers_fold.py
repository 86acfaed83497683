"""An independent reading of merging pairs of hidden units: by matrices, one row for each unit that is left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from merge.papers import Array, paper


@paper
def fold(x: Sequence[Array], base: Array | None, *, ratio: float, second: float, hidden: str, stretches: int) -> Array:
    own = x[0]
    reads = hidden.startswith("in_")
    if hidden == "none" or own.ndim not in ((2,) if reads else (1, 2)):
        return own
    turned = hidden.endswith("cols") and own.ndim == 2
    rows = own.T if turned else own
    size = len(rows)
    pairs = size // (2 * stretches)
    makes = np.eye(size)
    for stretch in range(stretches):
        for pair in range(round(ratio * pairs)):
            one = 2 * stretch * pairs + pair
            makes[one, one], makes[one, one + pairs] = (1, 1) if reads else (1 - second, second)
            makes[one + pairs] = 0
    made = makes @ rows
    return made.T if turned else made

"""Scores of changes over many tensors: from which on a share of a layer's or a model's is kept (FFG)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import EvomergeError
from evomerge.merge.methods.ota import Curvature, count_kept
from evomerge.models.statistics import Statistic

_SHIFT = 16
"""Bits of a float32 that a bin leaves open: of its mantissa seven are looked at."""


class Scored(NamedTuple):
    """A tensor of a scope.

    Attributes:
        x, base: flat, of any merged dtype, on one device.
        known: what data says of it.
        shape: of the tensor.
    """

    x: torch.Tensor
    base: torch.Tensor
    known: Statistic
    shape: tuple[int, ...]


class ScoreBins(NamedTuple):
    """How many scores lie in which bin.

    Attributes:
        bins: numbers of those that hold some, rising: the upper half of a float32's bits.
        counts: of each.
    """

    bins: NDArray[np.int64]
    counts: NDArray[np.int64]

    def least(self, density: float) -> float:
        """The lower end of the bin in which the share `density` of the scores, from above, ends."""
        count = count_kept(int(self.counts.sum()), density)
        if not count:
            return math.inf
        above = np.cumsum(self.counts[::-1])
        at = int(self.bins[::-1][int(np.searchsorted(above, count))])
        return float(np.uint32(at << _SHIFT).view(np.float32))


def score_bins(names: Sequence[str], open_: Callable[[str], Scored | None], rank_one: bool) -> ScoreBins:
    """Count the scores of a scope.

    Args:
        names: of its tensors.
        open_: gives one; ``None`` for a tensor that data says nothing of, which is left out.
        rank_one: as of `ota.Curvature`.

    Raises:
        EvomergeError: a tensor that cannot be read; it is named.
    """
    total = np.zeros(1 << (31 - _SHIFT), np.int64)
    for name in names:
        try:
            found = open_(name)
        except EvomergeError as error:
            raise type(error)(f"of its scope, tensor {name!r}: {error.given}", error.allowed, error.do) from error
        if found is not None:
            scores = Curvature(found.known, found.shape, rank_one).scores(found.x, found.base)
            bins = torch.bincount(scores.view(torch.int32).bitwise_right_shift_(_SHIFT), minlength=len(total))
            total += bins[: len(total)].cpu().numpy()
    held = np.flatnonzero(total)
    return ScoreBins(held, total[held])

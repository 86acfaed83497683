"""CatCMA with margin whose genes move by the solutions in which they act, and by no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cmaes import CatCMAwM
from numpy.typing import NDArray

Array = NDArray[np.float64]


class ActingCatCMA(CatCMAwM):
    """`cmaes.CatCMAwM` that can be told which genes act.

    The mean of a number moves by the weighted steps of those solutions in which it acts, and the probabilities of a
    choice by their natural gradient alone. Step size and covariance learn from all: what was drawn for a gene that does
    not act is from the distribution itself, and independent of the ranks, so that it neither widens nor narrows it.
    """

    def learn(
        self, solutions: Sequence[CatCMAwM.Solution], ranks: NDArray[np.int64], acts: NDArray[np.bool_] | None
    ) -> None:
        """Move by a generation.

        Args:
            solutions: of the present generation.
            ranks: the place of each, 0 for the best.
            acts: which numbers, then choices act in each, shape ``(solutions, genes)``; all for ``None``.
        """
        self._telling = list(zip(solutions, ranks.astype(float).tolist(), strict=True))
        self._known = None if acts is None else {id(s): row for s, row in zip(solutions, acts, strict=True)}
        self.tell(self._telling)

    def _acting(self) -> NDArray[np.bool_] | None:
        """What acts in the solutions, in the order to which `tell` has sorted the list that it was given."""
        if self._known is None:
            return None
        return np.array([self._known[id(solution)] for solution, _ in self._telling])

    def _update_gaussian(self, sv: Array) -> None:
        before = self._mean.copy()
        super()._update_gaussian(sv)
        acts = self._acting()
        if acts is not None:
            idle = ~acts[: self._mu, : self._Nmi]
            steps = (sv[: self._mu] - before) / self._A
            self._mean -= self._cm * (self._weights[: self._mu, None] * steps * idle).sum(axis=0)

    def _update_categorical(self, sc: Any) -> None:
        acts = self._acting()
        if acts is not None:
            acts = acts[:, self._Nmi :]
            if not acts[: self._mu].any():
                return
            sc = np.where(acts[:, :, None], sc, self._q)  # no gradient
        super()._update_categorical(sc)

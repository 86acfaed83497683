"""Restarts of CMA-ES: which population, step size and budget the next run has.

IPOP: Auger and Hansen, "A Restart CMA Evolution Strategy With Increasing Population Size" (CEC 2005). BIPOP: Hansen,
"Benchmarking a BI-Population CMA-ES on the BBOB-2009 Function Testbed" (GECCO 2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["ipop", "bipop"]
LARGEST = 100_000
"""Candidates of a generation, at most: doubled again, it would be most of any budget."""


@dataclass(frozen=True)
class Run:
    """One run between two restarts.

    Attributes:
        popsize: candidates per generation.
        step: the initial step size, as a share of that of the first run.
        most: evaluations after which it ends anyway.
        large: whether it counts as one with a large population.
    """

    popsize: int
    step: float = 1.0
    most: float = math.inf
    large: bool = True


class Restarts:
    """Plans one run after the other; deterministic given the seed and what each run took.

    ``ipop`` doubles the population with every restart. ``bipop`` does so in one of two regimes; in the other, runs have
    a smaller population, ``popsize (large / (2 popsize))^(U^2)``, a smaller step, ``10^(-2 U)``, and at most half of
    the evaluations that the last large run took. The regime that has taken fewer evaluations is the next; the first run
    counts as one of small populations.

    Args:
        kind: which of them.
        popsize: of the first run.
        seed: of the uniform numbers U.
    """

    def __init__(self, kind: Kind, popsize: int, seed: int) -> None:
        self._kind, self._popsize = kind, popsize
        self._rng = np.random.default_rng([seed, 2])
        self._taken = {True: 0, False: 0}
        self._doubled, self._last_large = 0, 0

    def next(self, run: Run, taken: int) -> Run:
        """The run after `run`, which took so many evaluations."""
        first = self._doubled == 0
        large = run.large and not first
        self._taken[large] += taken
        if large:
            self._last_large = taken
        if self._kind == "ipop" or first or self._taken[False] >= self._taken[True]:
            self._doubled += 1
            return Run(min(self._popsize * 2**self._doubled, LARGEST))
        # The paper's equations for the second regime.
        share, step = self._rng.random(2)
        ratio = 2**self._doubled / 2
        small = max(int(self._popsize * ratio ** (share**2)), self._popsize)
        return Run(small, 10 ** (-2 * step), self._last_large / 2, large=False)

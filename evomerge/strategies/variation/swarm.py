"""How a particle of a swarm moves: towards the best that is known, and away from the worst."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Draws = Literal["step", "gene", "none"]


@dataclass(frozen=True)
class Forces:
    """What pulls a particle, and how strongly.

    Attributes:
        inertia: its own velocity.
        cognitive: the best place where it has been.
        social: the best place where any has been.
        repel: the worst place where any has been, away from it.
        normalised: whether the four, once drawn, are divided by their sum (Model Swarms); plain swarms do not.
        draws: whether each is multiplied by a number drawn from 0 to 1: one for every ``step`` (Model Swarms), another
            for every ``gene`` of it (most other swarms), or ``none``.
    """

    inertia: float
    cognitive: float
    social: float
    repel: float
    normalised: bool = True
    draws: Draws = "step"

    def drawn(self, rng: np.random.Generator, genes: int) -> Array:
        """The four factors of one step, shape ``(4, 1)`` or, drawn for each gene, ``(4, genes)``."""
        factors = np.array([[self.inertia], [self.cognitive], [self.social], [self.repel]])
        if self.draws != "none":
            factors = factors * rng.random((4, genes if self.draws == "gene" else 1))
        total = factors.sum(axis=0)
        return factors / np.where(total > 0, total, 1.0) if self.normalised else factors


def velocity(v: Array, x: Array, own: Array, best: Array, worst: Array, factors: Array) -> Array:
    """``c0 v + c1 (own - x) + c2 (best - x) - c3 (worst - x)``, the step that a particle wants to take.

    Feng et al., "Model Swarms" (arXiv 2410.11163, section 2), where ``c_k = r_k phi_k / sum(r phi)``; without the last
    term and the sum, Kennedy and Eberhart's swarm (1995) with Shi and Eberhart's inertia (1998).

    Args:
        v: the velocity so far, shape ``(n,)`` as all of these.
        x: where the particle is.
        own, best, worst: the best place where it was; the best and the worst where any was.
        factors: what `Forces.drawn` gave.
    """
    step = factors[0] * v + factors[1] * (own - x) + factors[2] * (best - x) - factors[3] * (worst - x)
    return np.asarray(step, dtype=np.float64)


def moved(x: Array, step: Array) -> Array:
    """A particle's next place, within the unit cube: it stops at a wall."""
    return np.clip(x + step, 0.0, 1.0)

"""How well the quadratics that `strategy=map` fits tell what candidates score, told anew from the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.objectives import Objective
from evomerge.report.formatting import clean, count
from evomerge.report.trial import Trial
from evomerge.strategies.bases.quadratic import Quadratic, coefficients, held_back, usual_samples

GOOD_R2 = 0.9
"""From here on a fit ranks candidates about as evaluating them does."""


@dataclass(frozen=True)
class Fits:
    """What a report says of the fits of a search.

    Attributes:
        line: a sentence: by objective the R2 of held-back fifths.
        outside: candidates that lie farther out than any sample, so that their fits were extrapolated.
    """

    line: str
    outside: frozenset[int]


def fits_of(trials: Sequence[Trial], objectives: Sequence[Objective], strategy: Mapping[str, object]) -> Fits | None:
    """Fit what was told; ``None`` where another strategy searched, or too little was told.

    Genes are scaled by the range in which they were tried, which changes nothing of a quadratic.

    Args:
        trials: of one phase, in the order told.
        objectives: of the search.
        strategy: the node of the configuration.
    """
    if not str(strategy.get("_target_", "")).endswith("AmortizedPareto"):
        return None
    told = [t for t in trials if t.status == "ok" and isinstance(t.genome, list) and _numbers(t.genome)]
    told = [t for t in told if all(np.isfinite(t.objectives.get(o.name, np.nan)) for o in objectives)]
    if len({len(t.genome) for t in told}) != 1:
        return None
    values = np.array([t.genome for t in told], dtype=np.float64)
    low, span = values.min(axis=0), np.ptp(values, axis=0)
    points = ((values - low) / np.where(span > 0, span, 1.0))[:, span > 0]
    least = coefficients(points.shape[1])
    if len(points) < least or not points.shape[1]:
        return None
    r2 = {o.name: held_back(points, np.array([t.objectives[o.name] for t in told])) for o in objectives}
    shares = ", ".join(f"{clean(name, 40)} {value:.3f}" for name, value in r2.items() if not np.isnan(value))
    weak = [clean(name, 40) for name, value in r2.items() if value < GOOD_R2]
    line = f"Quadratics fitted to {count(len(points), 'candidate')}: R2 on held-back fifths {shares or 'not known'}."
    if weak:
        line += f" Below {GOOD_R2} a fit is a rough guide only: {', '.join(weak)}."
    samples = strategy.get("samples")
    first = samples if isinstance(samples, int) else usual_samples(points.shape[1])
    sampled = sorted(range(len(told)), key=lambda i: told[i].candidate)[:first]
    fit = Quadratic.fit(points[sampled], np.zeros(len(sampled)), "identity")
    outside = frozenset(told[i].candidate for i in np.flatnonzero(fit.extrapolates(points)))
    return Fits(line, outside - {told[i].candidate for i in sampled})


def _numbers(genome: Sequence[object]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in genome)

from __future__ import annotations

import numpy as np
import pytest

from evomerge.objectives import Objective
from evomerge.report.html.fits import fits_of
from evomerge.report.trial import Trial

MAP = {"_target_": "evomerge.strategies.amortized_pareto.AmortizedPareto", "samples": 30}
OBJECTIVES = (Objective("maths"), Objective("luck"))


def trials(count: int, *, far: bool = False) -> list[Trial]:
    rng = np.random.default_rng(0)
    genomes = (0.4 + 0.2 * rng.random((count, 2))).tolist()
    if far:
        genomes.append([1.0, 0.0])
    found = []
    for number, (a, b) in enumerate(genomes):
        scores = {"maths": 0.5 + 0.3 * a - 0.4 * (b - 0.5) ** 2, "luck": float(rng.random())}
        found.append(Trial(number, 0, [a, b], (), "", 0.0, status="ok", objectives=scores))
    return found


def test_the_r2_of_held_back_samples_is_said_and_a_rough_fit_named() -> None:
    fits = fits_of(trials(30), OBJECTIVES, MAP)
    assert fits is not None
    assert "30 candidates" in fits.line
    assert "maths 1.000" in fits.line
    assert fits.line.endswith("Below 0.9 a fit is a rough guide only: luck.")
    assert fits.outside == frozenset()


def test_what_lies_beyond_the_samples_is_marked() -> None:
    fits = fits_of(trials(30, far=True), OBJECTIVES, MAP)
    assert fits is not None
    assert 30 in fits.outside


@pytest.mark.parametrize(
    ("told", "strategy"),
    [(trials(30), {"_target_": "evomerge.strategies.optuna_samplers.Nsga2"}), (trials(5), MAP), ([], MAP)],
    ids=["another strategy", "too few", "none"],
)
def test_nothing_is_said_of_what_was_not_fitted(told: list[Trial], strategy: dict[str, object]) -> None:
    assert fits_of(told, OBJECTIVES, strategy) is None

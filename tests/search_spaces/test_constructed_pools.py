"""Data flow search on pools whose answer is known; `scripts/benchmark_data_flow.py` is the full run."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.benchmark_data_flow import RECOVERED, Scorer, catcma, damaged, hidden, questions, relaxed, search, trained

SIMPLE = {"simple": 1.0}
EVALUATIONS = 1500


@pytest.fixture(scope="module")
def whole() -> Any:
    """A model that repeats words, well enough for broken layers to show."""
    return trained(60, SIMPLE)


@pytest.mark.parametrize("kind", ["damaged", "hidden"])
def test_the_undamaged_model_is_recovered(whole: Any, kind: str) -> None:
    pool = damaged(whole, (2, 3), (0, 1, 4)) if kind == "damaged" else hidden(whole, (2, 3), (1, 4))
    score = Scorer(pool, questions(4, SIMPLE))
    assert all(score.of(name) < 0.9 * score.whole for name in pool.models)
    best, evaluations, genome = search(*catcma(pool, 0), score, EVALUATIONS)
    assert best >= RECOVERED * score.whole
    assert genome is not None
    # The paper's relaxation with the same budget, for comparison: shown with `pytest -s`.
    plain, plain_evaluations, _ = search(*relaxed(pool, 0), score, evaluations)
    print(f"{kind}: CatCMA {best:.3f} after {evaluations}, relaxation {plain:.3f} after {plain_evaluations}")
    assert 0 < plain <= 1

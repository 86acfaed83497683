"""Data flow search on pools whose answer is known; `scripts/benchmark_data_flow.py` is the full run."""

from __future__ import annotations

import pytest

from scripts.benchmark_data_flow import POOLS, RECOVERED, Scorer, catcma, oracle, relaxed, search


@pytest.mark.parametrize("kind", POOLS)
def test_the_undamaged_model_is_recovered(kind: str) -> None:
    whole, batch = oracle()
    pool = POOLS[kind](whole)
    score = Scorer(pool, batch)
    assert all(score.of(name) < 0.2 * score.whole for name in pool.models)
    best, evaluations, genome = search(*catcma(pool, "layer", 0), score)
    assert best >= RECOVERED * score.whole
    assert genome is not None
    # The paper's relaxation with the same budget, for comparison: shown with `pytest -s`.
    plain, plain_evaluations, _ = search(*relaxed(pool, "layer", 0), score, evaluations)
    print(f"{kind}: CatCMA {best:.3f} after {evaluations}, relaxation {plain:.3f} after {plain_evaluations}")
    assert 0 < plain <= 1


def test_layers_in_their_own_place_are_scored_as_such() -> None:
    whole, batch = oracle()
    pool = POOLS["damaged"](whole)
    score = Scorer(pool, batch)
    space, _ = catcma(pool, "layer", 0)
    assert score(space.decode(space.spec.initial)) == score.of("one")
    answer = space.spec.genome([gene.name in ("two.1", "one.2", "two.3", "one.4") for gene in space.spec])
    assert score(space.decode(answer)) == pytest.approx(score.whole)

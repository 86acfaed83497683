"""A candidate on a pretended GPU that is refused memory, at every place that asks for some."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from refused_allocations import Bench, Kind, refused, shrunk, time_is_up

from evomerge.candidate import Candidate
from evomerge.errors import NoMemoryError, PoolError


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Models of one layer."""
    bench = Bench(tmp_path_factory.mktemp("small"))
    gc.collect()
    gc.freeze()  # else every process that is forked looks through all that torch and transformers have
    with bench.gpu.present():
        yield bench
    gc.unfreeze()


def named(kinds: list[Kind], name: str) -> Kind:
    return next(kind for kind in kinds if kind.name == name)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fewest"),
    [("exact requests, the first candidate", 30), ("exact requests", 30), ("shared requests", 50)],
)
def test_scoring_succeeds_wherever_it_is_refused_memory_once(small: Bench, name: str, fewest: int) -> None:
    """With the same scores, batches of the same size and nothing left behind."""
    found = small.try_each(named(small.scoring(), name), [refused], deep=False)
    assert found.wrong == {}
    assert found.places == found.attempts >= fewest


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["slerp, the first", "model_stock, the first", "nuslerp, the first", "ramplus_tl, the first"]
)
def test_merging_succeeds_wherever_it_is_refused_memory_once(small: Bench, name: str) -> None:
    found = small.try_each(named(small.merging(whole=False), name), [refused], deep=False)
    assert found.wrong == {}
    assert found.attempts >= 14


@pytest.mark.slow
def test_a_candidate_that_is_ended_anywhere_leaves_nothing(small: Bench) -> None:
    found = small.try_each(named(small.scoring(), "exact requests"), [time_is_up], deep=False)
    assert found.wrong == {}
    assert found.attempts >= 30


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Models of eight layers, of which no tensor is large beside the model."""
    return Bench(tmp_path_factory.mktemp("deep"), layers=8)


@pytest.mark.nightly
@pytest.mark.slow
def test_a_candidate_succeeds_whenever_a_fifth_more_than_the_model_and_a_batch_fit(deep: Bench) -> None:
    """Also where sources and merged slices had the whole device before; otherwise one line says what to set."""
    deep.fitnesses["forward"].batch, deep.fitnesses["forward"].length = 8, 16
    info = deep.pool.info
    recipes = [info.linear({"a": 1 - i / 4, "b": i / 4}) for i in range(3)]
    with deep.gpu.present():
        expected = [found.objectives for found in deep.within(deep.gpu.memory, "forward", recipes)]
        model, batch = deep.needs("forward")
        deep.enough = int(1.2 * model) + batch
        outcomes = {}
        for percent in (80, 110, 120, 200, 500):
            budget = percent * model // 100 + batch * (percent >= 100)
            try:
                found = deep.within(budget, "forward", recipes)
            except (NoMemoryError, PoolError) as error:
                outcomes[percent] = str(error)
                continue
            for evaluation, objectives in zip(found, expected, strict=True):
                if evaluation.ok:
                    assert evaluation.objectives == objectives, percent
                outcomes[percent] = "" if evaluation.ok else evaluation.error
        assert [outcomes[percent] for percent in (120, 200, 500)] == [""] * 3
        assert "of weights in float32" in outcomes[80]
        for text in filter(None, outcomes.values()):
            assert "evaluator.device=spread" in text
            assert "\n" not in text
        tried = deep.try_each(Kind("shrunk", "forward", recipes[2], tuple(recipes[:2])), [shrunk], deep=True)
        assert tried.wrong == {}
        assert tried.attempts >= 60


@pytest.mark.slow
def test_what_never_fits_says_what_to_set(small: Bench) -> None:
    """The smallest batch of a fitness has no room beside the model; the next candidate is as good as ever."""
    recipes = [small.pool.info.linear({"a": 1 - i / 4, "b": i / 4}) for i in range(2)]
    worker: Any = small.worker(["exact"])
    first = worker.evaluate(Candidate(0, recipes[0]), "exact")
    small.gpu.memory = small.pool.checkpoints["base"].nbytes + 2000
    used = small.gpu.used
    failed = worker.evaluate(Candidate(1, recipes[0]), "exact")
    small.gpu.memory = 1 << 34
    assert not failed.ok
    assert failed.error.startswith("there is no memory to merge and score candidate 1, with all let go")
    assert "fitness.max_length" in failed.error
    assert failed.traceback == ""
    assert small.gpu.used <= used
    again = worker.evaluate(Candidate(2, recipes[0]), "exact")
    assert again.metrics == pytest.approx(first.metrics)
    worker.close()

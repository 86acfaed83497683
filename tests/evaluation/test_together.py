"""Candidates that are adapters, scored at once: what each is told, without an engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lora_server import save_adapters
from tiny_llama import save_llama

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import DeviceLostError, FitnessError, RecipeError
from evomerge.evaluation.fitting_adapters import FittingAdapters
from evomerge.evaluation.local import LocalEvaluator
from evomerge.evaluation.together import TogetherScorer
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.protocols import Scores
from evomerge.recipes.slices import Input, SliceRecipe


class Models:
    """Takes numbers for plans: negative ones are no adapters, 13 is one that cannot be loaded."""

    at_once = 3

    def __init__(self) -> None:
        self.begun = self.recovered = 0
        self.loaded: list[int] = []

    def find(self, plan: Any) -> int | None:
        if plan == 99:
            raise RecipeError("no plan")
        return plan if plan >= 0 else None

    def begin(self) -> None:
        self.begun += 1

    def recover(self) -> None:
        self.recovered += 1

    def load(self, adapter: int) -> tuple[Any, MergeCount]:
        if adapter == 13:
            raise RecipeError("vLLM does not take its adapter")
        self.loaded.append(adapter)
        return adapter, MergeCount(computed=1, seconds=0.5)


class Fitness:
    """Scores a number by itself; 7 cannot be scored, 8 breaks all that are scored with it, 9 the engine."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, ...]] = []

    def run_together(self, models: Sequence[Any], parts: Sequence[Any]) -> list[Any]:
        self.groups.append(tuple(models))
        if 8 in models:
            raise RuntimeError("something inside")
        if 9 in models:
            raise type("EngineDeadError", (RuntimeError,), {})("gone")
        found: list[Any] = [Scores({"score": float(model)}, seconds={"model": 0.25, "other": 0.1}) for model in models]
        return [FitnessError("no score") if model == 7 else own for model, own in zip(models, found, strict=True)]


def evaluated(*numbers: int | None) -> tuple[dict[int, Evaluation], Models, Fitness]:
    models, fitness = Models(), Fitness()
    scorer = TogetherScorer(models, lambda recipe: recipe, nullcontext)  # type: ignore[arg-type, return-value]
    candidates: list[Any] = [Candidate(100 + place, number) for place, number in enumerate(numbers)]  # type: ignore[arg-type]
    return scorer.evaluate(fitness, candidates, "held_out"), models, fitness  # type: ignore[arg-type]


def test_groups_are_as_large_as_the_engine_takes_and_the_rest_is_left() -> None:
    found, models, fitness = evaluated(1, -1, 2, 3, None, 4, 5)
    assert fitness.groups == [(1, 2, 3), (4, 5)]
    assert {place: own.objectives["score"] for place, own in found.items()} == {0: 1, 2: 2, 3: 3, 5: 4, 6: 5}
    assert [own.candidate for own in found.values()] == [100, 102, 103, 105, 106]
    first = found[0]
    assert (first.status, first.split, models.begun) == ("ok", "held_out", 1)
    assert first.merge["computed"] == 1
    assert first.seconds["model"] == 0.25
    assert first.seconds["merge"] >= 0.5
    assert evaluated(-1, None)[1].begun == 0


def test_what_one_does_wrong_is_its_own() -> None:
    found, models, fitness = evaluated(1, 7, 13, 99, 2)
    assert {place: own.status for place, own in found.items()} == {
        0: "ok",
        1: "failed",
        2: "failed",
        3: "failed",
        4: "ok",
    }
    assert [found[place].error for place in (1, 2, 3)] == ["no score", "vLLM does not take its adapter", "no plan"]
    assert fitness.groups == [(1, 7), (7,), (2,)]  # alone once more: something of another may have reached it
    assert models.recovered == 2


def test_where_all_fail_together_each_is_tried_alone() -> None:
    found, models, fitness = evaluated(1, 8, 2)
    assert fitness.groups == [(1, 8, 2), (1,), (8,), (2,)]
    assert [found[place].status for place in range(3)] == ["ok", "failed", "ok"]
    assert "something inside" in found[1].error
    assert "Traceback" in found[1].traceback
    assert models.begun == 4  # what the broken call has left is dropped before each


def test_a_dead_engine_is_nobodys_failure() -> None:
    with pytest.raises(DeviceLostError):
        evaluated(1, 9)
    with pytest.raises(DeviceLostError):
        evaluated(9)


class SlowWorker:
    """Takes so long for each candidate as its id says, in tenths of a second."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, ...]] = []

    def fitness(self, split: Split) -> None:
        pass

    def close(self) -> None:
        pass

    def evaluate(self, candidate: Candidate, split: Split) -> Evaluation:
        return self.evaluate_together([candidate], split)[0]

    def evaluate_together(self, candidates: Sequence[Candidate], split: Split) -> list[Evaluation]:
        self.groups.append(tuple(candidate.id for candidate in candidates))
        for candidate in candidates:
            time.sleep(0.1 * (candidate.id // 100))
        return [Evaluation(candidate.id, "ok", split) for candidate in candidates]


def local(together: int, **settings: Any) -> tuple[LocalEvaluator, SlowWorker]:
    worker = SlowWorker()

    class Build:
        def __init__(self) -> None:
            self.together = together

        def __call__(self, **_: Any) -> Any:
            return worker

    return LocalEvaluator(Build(), device="cpu", **settings), worker


def test_the_evaluator_of_this_process_takes_what_waits_on_the_same_items() -> None:
    evaluator, worker = local(3)
    assert (evaluator.slots, evaluator.together) == (3, 3)
    for number in range(5):
        evaluator.submit(Candidate(number, None))
    evaluator.submit(Candidate(5, None), "held_out")
    assert [evaluator.collect().candidate for _ in range(2)] == [0, 1]
    assert evaluator.withdraw() == [3, 4, 5]  # 2 has been scored
    evaluator.submit(Candidate(6, None), "held_out")
    assert [evaluator.collect().candidate for _ in range(2)] == [2, 6]
    evaluator.submit(Candidate(7, None))
    evaluator.submit(Candidate(8, None), "held_out")
    assert [evaluator.collect().split for _ in range(2)] == ["search", "held_out"]
    assert worker.groups == [(0, 1, 2), (6,), (7,), (8,)]
    assert local(1)[0].slots == 1


def test_of_several_that_take_too_long_each_is_tried_alone() -> None:
    evaluator, worker = local(3, timeout=0.3)
    for number in (1, 2, 1500, 3):
        evaluator.submit(Candidate(number, None))
    found = [evaluator.collect() for _ in range(4)]
    assert [(own.candidate, own.status) for own in found] == [(1, "ok"), (2, "ok"), (1500, "failed"), (3, "ok")]
    assert "evaluator.timeout=0.3" in found[2].error
    assert worker.groups == [(1, 2, 1500), (1,), (2,), (1500,), (3,)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    root = tmp_path_factory.mktemp("adapted")
    save_llama(root / "base", 0, layers=2)
    names = {"a": str(root / "a"), "b": str(root / "b")}
    save_adapters(root / "base", root)
    return open_pool({"base": str(root / "base")} | {n: f"{root / 'base'}+{p}" for n, p in names.items()}, base="base")


def test_which_plans_an_engine_takes(pool: Pool) -> None:
    fitting = FittingAdapters(pool)
    assert fitting.rank == 8  # 2 + 3, and what vLLM keeps room for
    assert fitting.targets == ["down_proj", "q_proj", "v_proj"]
    mean = make_plan(pool.info.linear({"a": 0.5, "b": 0.5}), pool)
    found = fitting.of(mean)
    assert {own.rank for own, _ in found.factors.values()} == {5}
    assert len(found.factors) == 2 * 3
    assert (found.slices, found.changed) == (len(mean.slices), len(mean.slices))
    nothing = fitting.of(fitting.base)
    assert nothing.changed == 0
    ((own, _),) = nothing.factors.values()
    assert own.rank == 1
    assert not own.a.any()
    assert found.key != nothing.key == fitting.of(make_plan(pool.info.linear({"base": 1.0}), pool)).key
    ties = [
        SliceRecipe(
            s, "ties", (Input("a", None, (("weight", 1.0),)), Input("b", None, (("weight", 1.0),))), (), Input("base")
        )
        for s in pool.info.slices
    ]
    assert "ties gives no sum of the adapters' factors" in fitting.refusal(make_plan(pool.info.recipe(ties), pool))
    assert FittingAdapters(pool, 64).rank == 64
    sizes = [own.b.shape[0] + own.a.shape[1] for own, _ in found.factors.values()]
    assert fitting.nbytes(2) == 2 * 8 * sum(sizes)
    with pytest.raises(RecipeError, match="has rank 5 and the engine takes adapters of rank 1 at most"):
        FittingAdapters(pool, 1).of(mean)


def test_which_pools_an_engine_takes(pool: Pool, tmp_path: Path) -> None:
    base, a, _ = (checkpoint.folders for checkpoint in pool.checkpoints.values())
    adapter = f"{base[0]}+{a[1]}"
    with pytest.raises(RecipeError, match="has adapters and not their base"):
        FittingAdapters(open_pool({"a": adapter, "b": adapter}))
    with pytest.raises(RecipeError, match="no model of the pool is an adapter"):
        FittingAdapters(open_pool({"a": str(base[0]), "b": str(base[0])}))
    heads = save_adapters(base[0], tmp_path, names="h", target_modules=["q_proj", "lm_head"])
    with pytest.raises(RecipeError, match=r"changes the head, lm_head; vLLM leaves"):
        FittingAdapters(open_pool({"base": str(base[0]), "h": f"{base[0]}+{heads['h']}"}, base="base"))


def test_a_rank_that_vllm_keeps_no_room_for(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.evaluation import fitting_adapters

    monkeypatch.setattr(fitting_adapters, "RANKS", (1, 4))
    with pytest.raises(RecipeError, match="a sum of the pool's adapters has rank 5; at most 4"):
        FittingAdapters(pool)


def test_the_line_of_a_search() -> None:
    from evomerge.session.adapters import AdapterPlan, plan_adapters

    assert str(AdapterPlan(8, 16)) == "as adapters of rank 16 at most, 8 at once"
    engine: Any = SimpleNamespace(is_vllm=False)
    assert plan_adapters(engine, None, (), (), ()) is None  # type: ignore[arg-type]

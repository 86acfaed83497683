import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.candidate import Candidate, Split
from evomerge.errors import ConfigError, FitnessError
from evomerge.evaluation import worker as worker_module
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.devices import check_device, choose_device
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.local import LocalEvaluator
from evomerge.evaluation.worker import Worker
from evomerge.merge.execution.notes import Notes
from evomerge.merge.resident.merge_progress import MergeProgress
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.objectives import Objective
from evomerge.protocols import Scores
from evomerge.recipes.slices import Input, SliceRecipe


class Norm:
    """Scores a model by the norm of its parameters; `break_on` makes the n-th run misbehave."""

    objectives = (Objective("norm"),)

    def __init__(self, misbehave: dict[int, Callable[[], float]] | None = None) -> None:
        self.misbehave = misbehave or {}
        self.prepared = self.runs = 0

    def check(self) -> None:
        pass

    def prepare(self, model: Any) -> None:
        self.prepared += 1

    def run(self, model: Any, part: Any = None) -> Scores:
        self.runs += 1
        if self.runs in self.misbehave:
            return Scores({"norm": self.misbehave[self.runs]()})
        value = float(sum(p.detach().double().square().sum() for p in model.module.parameters()))
        return Scores({"norm": value}, {"task/norm": value}, {"task/norm": np.array([value])}, {"model": 0.001})

    def fingerprint(self) -> str:
        return "sha256:norm"


@pytest.fixture
def pool(tiny_model: Any, tmp_path: Path) -> Pool:
    models = {name: str(tiny_model(name, seed=seed)) for seed, name in enumerate(("a", "b"))}
    return open_pool(models)


def test_prepares_each_fitness_once_and_only_when_asked(pool: Pool) -> None:
    search, held_out = Norm(), Norm()
    worker = Worker(pool, {"search": search, "held_out": held_out}, device="cpu")
    for number in range(3):
        assert worker.evaluate(Candidate(number, pool.info.linear({"a": 1.0}))).ok
    assert (search.prepared, held_out.prepared) == (1, 0)


def test_scores_the_candidate_not_its_predecessor(pool: Pool) -> None:
    worker = Worker(pool, {"search": Norm()}, device="cpu")
    recipes = [pool.info.linear({"a": 1.0}), pool.info.linear({"b": 1.0}), pool.info.linear({"a": 0.5, "b": 0.5})]
    first = [worker.evaluate(Candidate(i, r)).objectives["norm"] for i, r in enumerate(recipes)]
    again = [worker.evaluate(Candidate(i, r)).objectives["norm"] for i, r in enumerate(reversed(recipes))]
    assert len(set(first)) == 3
    assert again == first[::-1]


def test_a_recipe_that_comes_again_is_planned_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Any] = []
    make = worker_module.make_plan
    monkeypatch.setattr(worker_module, "make_plan", lambda recipe, pool: planned.append(recipe) or make(recipe, pool))
    monkeypatch.setattr(worker_module, "_PLANS", 2)
    worker = Worker(pool, {"search": Norm()}, device="cpu")
    recipes = [pool.info.linear({"a": weight, "b": 1 - weight}) for weight in (0.25, 0.5, 0.75)]
    order = [0, 1, 0, 1, 2, 1, 0]  # two are kept: the third sends the first away
    scores = [worker.evaluate(Candidate(n, recipes[which])).objectives["norm"] for n, which in enumerate(order)]
    assert [next(i for i, own in enumerate(recipes) if own is recipe) for recipe in planned] == [0, 1, 2, 0]
    assert len(set(scores)) == 3
    assert [scores[order.index(which)] for which in order] == scores


def test_no_candidate_ends_a_run(pool: Pool) -> None:
    def raises() -> float:
        raise RuntimeError("the task broke\nover two lines")

    def refuses() -> float:
        raise FitnessError("log-likelihoods are not finite")

    fitness = Norm({1: raises, 2: refuses, 3: lambda: float("nan")})
    worker = Worker(pool, {"search": fitness}, device="cpu")
    outcomes = [worker.evaluate(Candidate(i, pool.info.linear({"a": 1.0}))) for i in range(4)]
    assert [o.status for o in outcomes] == ["failed", "failed", "failed", "ok"]
    assert "RuntimeError: the task broke over two lines" in outcomes[0].error
    assert outcomes[1].error == "log-likelihoods are not finite"
    assert "norm' is nan" in outcomes[2].error
    assert not any(o.objectives for o in outcomes[:3])


def test_weights_without_a_sum_are_infeasible_and_leave_no_trace(pool: Pool) -> None:
    worker = Worker(pool, {"search": Norm()}, device="cpu")
    sound = pool.info.linear({"a": 0.3, "b": 0.7})
    before = worker.evaluate(Candidate(0, sound)).objectives
    inputs = (Input("a", None, (("weight", 1.0),)), Input("b", None, (("weight", -1.0),)))
    broken = [SliceRecipe(s, "linear", inputs, (("normalize", True),)) for s in pool.info.slices]
    outcome = worker.evaluate(Candidate(1, pool.info.recipe(broken)))
    assert outcome.status in ("infeasible", "failed")
    assert "sum" in outcome.error
    assert worker.evaluate(Candidate(2, sound)).objectives == before


def test_seconds_are_told_by_stage(pool: Pool) -> None:
    evaluation = Worker(pool, {"search": Norm()}, device="cpu").evaluate(Candidate(0, pool.info.linear({"a": 1.0})))
    assert set(evaluation.seconds) == {"merge", "model", "other"}
    assert evaluation.seconds["model"] == 0.001
    assert evaluation.seconds["merge"] > 0


def test_noting_has_seconds_and_a_stage_of_its_own(tiny_model: Any) -> None:
    models = {name: str(tiny_model(name, seed=seed)) for seed, name in enumerate(("base", "a", "b"))}
    pool, seen = open_pool(models, base="base"), []

    class Watching(Norm):
        def run(self, model: Any, part: Any = None) -> Scores:
            seen.append(worker.stage())
            return super().run(model, part)

    def ties(density: float) -> Any:
        inputs = tuple(Input(name, None, (("density", density), ("weight", 1.0))) for name in ("a", "b"))
        return pool.info.recipe([SliceRecipe(s, "ties", inputs, base=Input("base")) for s in pool.info.slices])

    worker = Worker(pool, {"search": Watching()}, device="cpu")
    assert worker.stage() == ("", 0, 0)
    first, second, third = (worker.evaluate(Candidate(i, ties(0.5 + i / 10))) for i in range(3))
    assert first.ok, first.error
    assert first.seconds["note"] > 0  # histograms of magnitudes
    assert second.seconds["note"] > 0  # their orders, wanted again
    assert "note" not in third.seconds
    assert first.seconds["note"] == first.merge["noted"] <= first.merge["seconds"]
    slices = len(pool.info.slices)
    assert seen == [("scoring", slices, slices)] * 3
    assert worker.stage()[0] == ""


def test_the_stage_of_a_merge_is_noting_while_that_takes_most_of_it() -> None:
    notes = Notes(1 << 20)
    progress = MergeProgress(notes)
    assert progress.doing == ""
    progress.begin(3)
    assert progress.doing == "merging"

    def find() -> str:
        assert notes.busy
        assert progress.doing == "noting"
        assert notes.small("inner", lambda: progress.doing, lasting=True) == "noting"  # counted once
        time.sleep(0.02)
        return "found"

    assert notes.small("kind", find, lasting=True) == "found"
    progress.step()
    assert (progress.doing, progress.done, progress.slices) == ("noting", 1, 3)
    assert progress.noted >= 0.02
    assert notes.seconds == progress.noted
    progress.end()
    assert progress.doing == ""


def test_memory_that_has_run_out_is_given_back_by_notes() -> None:
    notes = Notes(1000)
    assert notes.large("order", 600, lambda: "found", at_once=True) == "found"
    notes.clear()
    assert (notes.used, notes.budget) == (0, 500)
    assert notes.large("order", 600, lambda: "found", at_once=True) is None


def test_local_evaluates_in_the_order_of_submission(pool: Pool) -> None:
    built = []

    def build(*, device: str, threads: int | None, cache: CacheSettings) -> Worker:
        built.append((device, threads, cache.memory, cache.shared))
        return Worker(pool, {"search": Norm()}, device=device, threads=threads, cache=cache)

    threads = torch.get_num_threads()
    evaluator = LocalEvaluator(build, device="cpu", threads=threads, cache="1MB")
    for number in (4, 2, 7):
        evaluator.submit(Candidate(number, pool.info.linear({"a": 1.0})))
    assert [evaluator.collect().candidate for _ in range(3)] == [4, 2, 7]
    assert evaluator.fingerprint("search") == "sha256:norm"
    assert built == [("cpu", threads, 10**6, "off")]


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(ConfigError, match=r"evaluator\.device is 'cdua': it is no device; auto, cpu, cuda"):
        choose_device("cdua")


@pytest.mark.parametrize(
    ("device", "gpus", "says"),
    [
        ("tpu", 0, "it is no device"),
        ("meta", 0, "it computes no numbers"),
        ("cuda", 0, "this machine has no GPU that torch can use"),
        ("spread", 0, "this machine has no GPU that torch can use"),
        ("cuda:7", 2, "this machine has 2 GPUs that torch can use: cuda:0 to cuda:1"),
        ("cuda:1", 1, "this machine has 1 GPU that torch can use"),
        ("xpu", 0, "torch cannot use it here"),
    ],
)
def test_a_device_that_is_not_there(device: str, gpus: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if device == "xpu" and torch.xpu.is_available():
        pytest.skip("it is there")
    with pytest.raises(ConfigError) as error:
        check_device({"device": device, "gpu": None}, here=True)
    assert str(error.value).startswith(f"evaluator.device is {device!r}: {says}")
    assert len(str(error.value)) < 250
    elsewhere = {"device": device, "gpu": "24GB"}
    for settings, here in ((elsewhere, True), ({"device": device}, False)):
        if device in ("tpu", "meta"):  # nowhere
            with pytest.raises(ConfigError):
                check_device(settings, here=here)
        else:
            check_device(settings, here=here)


def test_devices_that_need_no_look() -> None:
    for device in ("auto", "cpu", None):
        check_device({"device": device}, here=True)


def test_only_the_searchs_own_scores_are_of_quantised_weights(pool: Pool) -> None:
    class Output(Norm):
        @torch.no_grad()
        def run(self, model: Any, part: Any = None) -> Scores:
            return Scores({"norm": float(model.module(torch.tensor([[5, 9, 31, 7]])).logits.double().square().sum())})

    def scores(engine: EngineSettings) -> list[float]:
        search = Output()
        worker = Worker(
            pool, {"search": search, "validation": search, "held_out": Output()}, device="cpu", engine=engine
        )
        found = []
        splits: tuple[Split, ...] = ("search", "held_out", "search", "validation")
        for split in splits:
            for recipe in (pool.info.linear({"a": 0.4, "b": 0.6}), pool.info.linear({"b": 1.0})):
                evaluation = worker.evaluate(Candidate(0, recipe), split)
                found.append(evaluation.objectives["norm"])
        assert worker.fingerprint("search") == " ".join(
            ["sha256:norm", *([engine.quantise] if engine.quantise else [])]
        )
        assert worker.fingerprint("held_out") == f"sha256:norm{' int8' * engine.quantise_held_out}"
        return found

    full, quantised = scores(EngineSettings()), scores(EngineSettings(quantise="int8"))
    assert quantised[2:4] + quantised[6:] == full[2:4] + full[6:]
    assert quantised[:2] == quantised[4:6]
    assert all(own != other for own, other in zip(quantised[:2], full[:2], strict=True))
    assert scores(EngineSettings(quantise="int8", quantise_held_out=True)) == 4 * quantised[:2]

"""A search that begins from a checkpoint goes on as if it had never ended, whatever its strategy."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.strategy_player import MIXED

from evomerge.candidate import Candidate, Evaluation, Items, Split
from evomerge.errors import InfeasibleError
from evomerge.genomes.arrays import ArraySpec
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.genomes.lineages import LineageSpec
from evomerge.genomes.perturbations import PerturbationSpec
from evomerge.objectives import MetricShare, Objective, Scalarisation
from evomerge.protocols import Estimate
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import ModelRef, SliceId
from evomerge.run.checkpoint import Checkpoints
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger, canonical_events, read_ledger
from evomerge.run.record import Record
from evomerge.search.incumbent import Incumbent
from evomerge.search.loop import Search
from evomerge.search.phases import Phase
from evomerge.search.racing.knowledge import Knowledge
from evomerge.search.racing.race import Race
from evomerge.search.racing.settings import Racing
from evomerge.search.state import SearchState
from evomerge.search.warm_start import WarmStart
from evomerge.session.checkpointing import CheckpointSaver, begin
from evomerge.session.pruners import build_pruner
from evomerge.session.replay import ContinuedLedger, RecordedEvaluator
from evomerge.strategies.amortized_pareto import AmortizedPareto
from evomerge.strategies.bases.penalised import Penalised
from evomerge.strategies.bases.scalarised import SCALAR, Scalarised
from evomerge.strategies.brute_force import BruteForce
from evomerge.strategies.catcma import CatCma
from evomerge.strategies.cma_es import CmaEs
from evomerge.strategies.cma_me import CmaMe
from evomerge.strategies.differential_evolution import DifferentialEvolution
from evomerge.strategies.eggroll import Eggroll
from evomerge.strategies.genetic import GeneticAlgorithm
from evomerge.strategies.genome_evolution import GenomeEvolution
from evomerge.strategies.islands import Islands
from evomerge.strategies.m2n2 import M2N2
from evomerge.strategies.map_elites import MapElites
from evomerge.strategies.moead import Moead
from evomerge.strategies.nested_pareto import NestedPareto
from evomerge.strategies.optuna_samplers import Gp, Nsga2, Nsga3, Tpe
from evomerge.strategies.particle_swarm import ParticleSwarm
from evomerge.strategies.quasi_random import QuasiRandom
from evomerge.strategies.random_search import RandomSearch
from evomerge.strategies.smac import Smac
from fitness.estimators.irt import ItemResponse
from fitness.estimators.stratified_mean import StratifiedMean

ONE = (Objective("score"),)
TWO = (Objective("score"), Objective("size", "minimize"))
THREE = (*TWO, Objective("speed"))
NUMBERS = GenomeSpec((Gene("a"), Gene("b"), Gene("c", resolution=0.1)))
DISCRETE = GenomeSpec((Gene("a", resolution=0.05), Gene("b", resolution=0.05), Gene("c", "boolean")))
LINEAGE = LineageSpec(("a", "b", "c"))
WEIGHTS = ArraySpec([f"w{i}" for i in range(12)], 1.0)
POOL = PoolInfo(
    refs=tuple((name, ModelRef(name, fingerprint=f"sha256:{name}")) for name in ("base", "a", "b")),
    sources=("a", "b"),
    base="base",
    slices=(SliceId("embed"),),
    layers=1,
    dtype="float32",
)


COUNTS = {"one": 30, "two": 10}


def digits(genome: Genome) -> np.ndarray:
    """Sixteen numbers from 0 to 15 that depend on everything in the genome."""
    content = getattr(genome, "digest", None) or repr(genome.values)
    return np.array([int(digit, 16) for digit in hashlib.sha256(content.encode()).hexdigest()[:16]])


class Space:
    """One genome in sixteen has no recipe."""

    def __init__(self, spec: GenomeSpec, shift: float = 0.0) -> None:
        self.spec, self._shift = spec, shift

    def decode(self, genome: Genome) -> Recipe:
        found = digits(genome)
        if found[0] == 3:
            raise InfeasibleError("it has a 3")
        return POOL.linear({"a": float(found[1]) / 16 + self._shift, "b": float(found[2] * 16 + found[3]) / 256})


def scored_in_part(candidate: Candidate, split: Split) -> Evaluation:
    """A score for each of forty items of two tasks; a part has those of its places. Some fail, some on many items.

    The cheap rung has a number that is near to their mean, with noise of its own.
    """
    assert candidate.recipe is not None
    rng = np.random.default_rng(int(candidate.recipe.hash[-8:], 16))
    if split == "cheap":
        near = float(rng.random(40).mean().round(2) + 0.1 * digits(candidate.genome)[9] / 16)
        if near < 0.45:
            return Evaluation(candidate.id, "failed", split, error="it broke")
        return Evaluation(candidate.id, "ok", split, {"loss": -near}, seconds={"merge": 0.1, "model": 1.0})
    items = {f"{task}/acc": rng.random(count).round(2) for task, count in COUNTS.items()}
    for task, places in (candidate.part or {}).items():
        mask = np.ones(COUNTS[task], dtype=bool)
        mask[list(places)] = False
        items[f"{task}/acc"][mask] = np.nan
    lot = rng.random() if candidate.genome is not None else 1.0
    if lot < 0.06 or (lot < 0.15 and sum(map(len, (candidate.part or {}).values())) > 8):
        return Evaluation(candidate.id, "failed", split, error="it broke")
    value = float(np.mean([np.nanmean(values) for values in items.values()]))
    return Evaluation(candidate.id, "ok", split, {"score": value}, {"t/acc": value}, items)


class Learning:
    """An estimator whose estimates give away what it has learnt from."""

    def fit(self, known: Sequence[Items]) -> None:
        self._known = float(np.nansum([np.nansum(values) for items in known for values in items.values()])) % 1

    def order(self, counts: Mapping[str, int]) -> Mapping[str, Sequence[int]]:
        rng = np.random.default_rng(int(self._known * 1e6))
        return {task: rng.permutation(count).tolist() for task, count in counts.items()}

    def estimate(self, items: Items) -> dict[str, Estimate]:
        count = sum(int(np.isfinite(values).sum()) for values in items.values())
        value = float(np.mean([np.nanmean(values) for values in items.values()]))
        return {"score": Estimate(value + 0.01 * self._known * (count < 40), 1 / count)}

    def difference(self, items: Items, other: Items) -> dict[str, Estimate]:
        found = np.concatenate([values - other[name] for name, values in items.items()])
        found = found[np.isfinite(found)]
        if len(found) < 2:
            return {}
        return {"score": Estimate(float(found.mean()), float(found.std() / len(found) ** 0.5))}

    def by_item(self, items: Items, at: Items) -> dict[str, Items]:
        return {"score": {name: values / len(items) for name, values in items.items()}}


class Workers:
    """Finish in an order of their own that depends on the candidates alone; one evaluation in sixteen fails."""

    def __init__(self, slots: int, raced: bool = False) -> None:
        self.slots, self.raced = slots, raced
        self._queue: list[tuple[Candidate, Split]] = []

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        self._queue.append((candidate, split))

    def collect(self) -> Evaluation:
        candidate, split = min(self._queue[: self.slots], key=lambda pair: hash(pair[0].id * 7919 % 101))
        self._queue.remove((candidate, split))
        if candidate.part is not None or split == "validation" or self.raced:
            return scored_in_part(candidate, split)
        if candidate.genome is None:
            return Evaluation(candidate.id, "ok", split, {"score": 0.25, "size": candidate.id + 6, "speed": 0.0})
        found = digits(candidate.genome)
        if found[4] == 5:
            return Evaluation(candidate.id, "failed", split, error="it broke")
        if len(candidate.genome) == 3 and not isinstance(candidate.genome.values[2], bool):
            value = -float(sum((float(x) - 0.4) ** 2 for x in candidate.genome.values))
        else:
            value = float(found[5] * 16 + found[6]) / 256
        scores = {"score": value, "size": float(found[7]), "speed": float(found[8])}
        return Evaluation(candidate.id, "ok", split, scores, items={"t/acc": (found[9:] > 7).astype(np.float64)})

    def fingerprint(self, split: Split) -> str:
        return "sha256:fitness"

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Case:
    """A search.

    Attributes:
        make: the strategy, of one or of all phases.
        spec, objectives: what it is given.
        evaluations: of each phase.
        ordered, in_flight, slots: of the search.
        phases: how many, each with a space of its own that begins with the winner.
        again: genomes of the user's.
        race: on how many items candidates are scored.
        cheap: what a rung before the race decides by.
        estimator: tells from some items what all would give.
        weighed: preferences, for each of which the last phase is searched by a genetic algorithm.
    """

    make: Callable[..., Any]
    spec: GenomeSpec = NUMBERS
    objectives: tuple[Objective, ...] = ONE
    evaluations: int = 32
    ordered: bool = True
    in_flight: int | None = None
    slots: int = 1
    phases: int = 1
    again: int = 0
    race: Racing | None = None
    cheap: Objective | None = None
    estimator: Callable[[], Any] = Learning
    weighed: tuple[Mapping[str, float], ...] = ()

    def parts(self) -> list[Phase]:
        """The phases, their strategies made anew each time."""

        def strategy(spec: GenomeSpec, baselines: Mapping[str, Mapping[str, float]]) -> Any:
            return self.make(spec, self.objectives, seed=5)

        def space(winner: Recipe | None) -> Space:
            return Space(self.spec, 0.0 if winner is None else int(winner.hash[-4:], 16) / 2**16)

        def weighed(spec: GenomeSpec, baselines: Mapping[str, Mapping[str, float]], place: int) -> Any:
            return GeneticAlgorithm(spec, (SCALAR,), seed=place, popsize=4)

        found = [Phase(f"phase {k}", self.evaluations, space, strategy, k > 0) for k in range(self.phases)]
        if self.weighed:
            found[-1:] = replace(found[-1], strategy=weighed, preferences=self.weighed).each()
        return found

    def warm(self, space: Any, number: int) -> WarmStart:
        rng = np.random.default_rng(number)
        return WarmStart(to_reevaluate=[self.spec.sample(rng) for _ in range(self.again)])


def scalarised(spec: GenomeSpec, objectives: tuple[Objective, ...], *, seed: int) -> Scalarised:
    scalarisation = Scalarisation.of(objectives, "weighted", {}, [])
    return Scalarised(GeneticAlgorithm(spec, (SCALAR,), seed=seed, popsize=6), scalarisation)


def penalised(spec: GenomeSpec, objectives: tuple[Objective, ...], *, seed: int) -> Penalised:
    return Penalised(CmaEs(spec, objectives, seed=seed, popsize=6), spec, objectives[0], 0.1)


def plain_mean() -> StratifiedMean:
    return StratifiedMean(SHARES, ONE)


def anchors() -> ItemResponse:
    return ItemResponse(SHARES, ONE, anchors="entropy", dimensions=1)


SHARES = [MetricShare(f"{task}/acc", 0.5) for task in COUNTS]
DE = partial(DifferentialEvolution, popsize=6)


def judged(pruner: str, first: float) -> Racing:
    return Racing(first, "pruner", pruner=pruner)


LOSS = Objective("loss", "minimize")
FEW = {"descriptors": ["genes:a"], "cells": 5}
GA = partial(GeneticAlgorithm, popsize=6)
MAP = partial(AmortizedPareto, samples=12, verify=4, popsize=6, generations=2)
NESTED = partial(
    NestedPareto, samples=6, verify=3, popsize=6, generations=2, models={name: [name] for name in ("a", "b", "c")}
)
MOEAD = partial(Moead, preferences=6)
WEIGHED = ({"score": 1.0}, {"score": 0.5, "size": 0.5}, {"score": 0.1, "size": 0.9})
CYCLIC = partial(MapElites, quality="cyclic", sampling="quality", emitter="singular", cells=3, initial=8)
CASES = {
    "cma_es": Case(CmaEs),
    "cma_es on mixed genes": Case(CmaEs, MIXED, in_flight=3, slots=2),
    "cma_es, no order": Case(partial(CmaEs, asynchronous=True), MIXED, ordered=False, slots=8),
    "catcma": Case(CatCma, DISCRETE),
    "catcma, no order": Case(partial(CatCma, asynchronous=True), MIXED, ordered=False, slots=5),
    "cma_me": Case(partial(CmaMe, emitters=2, popsize=4, **FEW)),
    "de": Case(partial(DifferentialEvolution, popsize=6), in_flight=4, slots=3),
    "ga": Case(GA, slots=2),
    "ga, no order": Case(GA, MIXED, ordered=False, slots=3),
    "islands": Case(partial(Islands, strategies=[GA, CmaEs], islands=2, every=7), in_flight=2),
    "penalised": Case(penalised),
    "islands of other genes": Case(
        partial(Islands, strategies=[GA], islands=2, every=5, migrants=3, select="random", genes=[["a"], None]), slots=2
    ),
    "m2n2": Case(partial(M2N2, size=6), in_flight=3, slots=3),
    "m2n2 on lineages": Case(partial(M2N2, size=6), LINEAGE, in_flight=3, slots=3),
    "m2n2 on lineages, no order": Case(partial(M2N2, size=6), LINEAGE, ordered=False, slots=4),
    "m2n2 on weights": Case(partial(M2N2, size=6), WEIGHTS),
    "map_elites": Case(partial(MapElites, initial=8, **FEW), ordered=False, slots=3),
    "eggroll": Case(partial(Eggroll, members=6), PerturbationSpec()),
    "map_elites, cyclic": Case(CYCLIC, MIXED, THREE, in_flight=2, slots=2),
    "pso": Case(partial(ParticleSwarm, popsize=5), NUMBERS, in_flight=3, slots=2),
    "pso, no order": Case(partial(ParticleSwarm, popsize=5), ordered=False, slots=3),
    "genome": Case(partial(GenomeEvolution, popsize=5), in_flight=3, slots=2),
    "genome, no order": Case(partial(GenomeEvolution, popsize=5), ordered=False, slots=3),
    "random": Case(RandomSearch, LINEAGE, in_flight=4, slots=2),
    "qmc": Case(QuasiRandom),
    "brute force": Case(BruteForce, DISCRETE, in_flight=5),
    "smac": Case(partial(Smac, startup=8, trees=3, candidates=50), MIXED, ordered=False, slots=2, evaluations=30),
    "tpe": Case(partial(Tpe, startup=8), ordered=False, slots=2),
    "gp": Case(partial(Gp, startup=21), evaluations=24),
    "nsga2": Case(partial(Nsga2, popsize=6), MIXED, TWO, ordered=False, slots=3),
    "nsga3": Case(partial(Nsga3, popsize=6), NUMBERS, THREE),
    "scalarised ga": Case(scalarised, NUMBERS, TWO, in_flight=2),
    "two phases": Case(CmaEs, phases=2, evaluations=24),
    "map": Case(MAP, NUMBERS, TWO, in_flight=3, slots=2),
    "map, bayesian": Case(partial(MAP, sampling="bayesian"), NUMBERS, TWO, in_flight=3, slots=2),
    "map, nested": Case(NESTED, NUMBERS, TWO, in_flight=3, slots=2),
    "moead": Case(MOEAD, MIXED, THREE, in_flight=3, slots=2),
    "moead, no order": Case(partial(Moead, preferences=5), NUMBERS, TWO, ordered=False, slots=3),
    "moead, then a phase for each preference": Case(MOEAD, MIXED, TWO, phases=2, in_flight=2, slots=2, weighed=WEIGHED),
    "three phases, two objectives": Case(scalarised, MIXED, TWO, phases=3, evaluations=16, in_flight=2),
    "the user's first": Case(GA, again=9, in_flight=4, slots=2),
    "raced by generation": Case(partial(CmaEs, popsize=5), evaluations=70, race=Racing(0.2)),
    "raced by generation on workers": Case(partial(CmaEs, popsize=5), evaluations=70, race=Racing(0.1), slots=3),
    "raced after the user's": Case(partial(CmaEs, popsize=5), evaluations=70, race=Racing(8, rotate=False), again=6),
    "raced against the best": Case(GA, race=Racing(0.2, "incumbent"), in_flight=3, slots=3),
    "raced against the best, no order": Case(GA, race=Racing(0.1, "incumbent"), ordered=False, slots=4),
    "raced, judged by wilcoxon": Case(GA, race=judged("wilcoxon", 0.4), in_flight=3, slots=3, evaluations=60),
    "raced, judged by percentile": Case(GA, race=judged("percentile", 0.1), ordered=False, slots=4),
    "raced, judged by hyperband": Case(GA, race=judged("hyperband", 0.1), phases=2, slots=2),
    "raced, by the mean": Case(GA, race=Racing(0.1, "incumbent"), ordered=False, slots=4, estimator=plain_mean),
    "raced against a member": Case(DE, race=Racing(0.1, "incumbent"), in_flight=4, slots=3, estimator=plain_mean),
    "raced by anchors": Case(GA, race=Racing(0.2, "incumbent"), in_flight=3, slots=3, estimator=anchors),
    "raced after a cheap rung": Case(partial(CmaEs, popsize=5), evaluations=70, race=Racing(8), cheap=LOSS),
    "raced after a cheap rung on workers": Case(
        partial(CmaEs, popsize=9), evaluations=70, race=Racing(8, most=16, keep_cheap=0.3), cheap=LOSS, slots=3, again=4
    ),
    "a cheap rung, then all items": Case(
        partial(CmaEs, popsize=5), evaluations=40, race=Racing(40), cheap=LOSS, phases=2, slots=2, estimator=plain_mean
    ),
    "raced in two phases": Case(partial(CmaEs, popsize=5), evaluations=40, race=Racing(0.3), phases=2),
    "some items for all": Case(partial(CmaEs, popsize=5), race=Racing(0.3, "none"), slots=2),
}


def session(path: Path, case: Case, *, checkpoints: bool = True, budget: int | None = None) -> Search:
    """Begin a run, or go on with it."""
    folder = RunFolder(path)
    record = Record(folder) if folder.ledger.exists() else None
    evaluator: Any = Workers(case.slots, case.race is not None)
    race = None
    if case.race is not None:
        pruner = build_pruner(case.race, sum(COUNTS.values())) if case.race.against == "pruner" else None
        race = Race(
            case.race, COUNTS, Knowledge(case.estimator(), case.objectives), case.objectives, 3, pruner, case.cheap
        )
    ledger = (
        Ledger(RunFolder.create(path), sync="interval")
        if record is None
        else ContinuedLedger(folder, record, resumed={}, sync="interval")
    )
    phases = case.parts()
    if budget is not None:  # of the last phase
        phases[-1] = replace(phases[-1], evaluations=budget)
    with ledger, Checkpoints(folder, every=None, evaluations=1, keep=1000) as saved:
        ledger.append("started", seed=5)
        search = Search(
            pool=POOL,
            phases=phases,
            evaluator=evaluator if record is None else RecordedEvaluator(evaluator, record),
            incumbent=Incumbent(case.objectives),
            ledger=ledger,
            keep=lambda incumbent: None,
            ordered=case.ordered,
            in_flight=case.in_flight,
            warm=case.warm,
            save=Waiting(saved, ledger),
            race=race,
            finalists=4 if race is not None else 0,
        )
        if checkpoints and isinstance(ledger, ContinuedLedger):
            begin(search, ledger)
        search.run()
    return search


class Waiting(CheckpointSaver):
    """Saves at every fourth opportunity, and waits until the one before is written."""

    calls = 0

    def __call__(self, state: SearchState, /, *, now: bool) -> None:
        self.calls += 1
        if self.calls % 4 == 1 or now:
            super().__call__(state, now=True)


@pytest.mark.parametrize("name", CASES)
def test_a_search_goes_on_from_every_kind_of_state(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut anywhere, it ends as when the whole ledger is gone through, and as if it had not been cut at all."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # thousands of files, and no power failure
    case = CASES[name]
    session(tmp_path / "whole", case)
    whole = canonical_events(RunFolder(tmp_path / "whole"))
    lines = (tmp_path / "whole" / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    taken = sorted(int(entry.name) for entry in (tmp_path / "whole" / "checkpoint").iterdir())
    assert len(taken) > (1 if case.race is not None else case.evaluations // 8)
    rng = np.random.default_rng(len(name))
    used = []
    for cut in sorted(rng.choice(range(taken[0], len(lines)), 2 if name != "gp" else 1, replace=False).tolist()):
        ends = []
        for checkpoints in (True, False):
            path = tmp_path / f"{cut}-{checkpoints}"
            shutil.copytree(tmp_path / "whole", path)
            (path / "ledger.jsonl").write_bytes(b"".join(lines[:cut]))
            session(path, case, checkpoints=checkpoints)
            ends.append(canonical_events(RunFolder(path)))
            if checkpoints:
                events = [event for event in read_ledger(RunFolder(path)) if event["event"] == "resumed"]
                used.append(events[0]["checkpoint"] if events else None)
        assert ends[0] == ends[1]
        if case.ordered:
            assert ends[0] == whole
    assert any(number is not None for number in used)


@pytest.mark.parametrize("name", ["cma_es", "de", "two phases", "the user's first", "raced by generation"])
def test_more_evaluations_are_what_they_would_have_been(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run that is given more goes on from a checkpoint that knows nothing of the budget's end."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    case = CASES[name]
    budget = case.evaluations
    session(tmp_path / "whole", case, budget=budget + 25)
    session(tmp_path / "more", case, budget=budget)
    assert canonical_events(RunFolder(tmp_path / "more"))[-1]["event"] == "stopped"
    session(tmp_path / "more", case, budget=budget + 25)
    resumed = [event for event in read_ledger(RunFolder(tmp_path / "more")) if event["event"] == "resumed"]
    assert resumed[0]["checkpoint"] > 0

    def searched(run: str) -> list[dict]:
        events = canonical_events(RunFolder(tmp_path / run))
        return [e for e in events if e["event"] in ("told", "improved") and e.get("split", "search") == "search"]

    assert searched("more") == searched("whole")


@pytest.mark.parametrize(
    "name",
    [
        *("raced against a member", "raced by anchors", "raced, judged by wilcoxon", "raced, judged by hyperband"),
        "raced after a cheap rung on workers",
    ],
)
def test_a_race_is_the_same_for_any_number_of_workers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    runs = []
    for slots in (1, 3):
        session(tmp_path / str(slots), replace(CASES[name], slots=slots))
        runs.append(canonical_events(RunFolder(tmp_path / str(slots))))
    assert runs[0] == runs[1]
    assert any(event.get("status") == "pruned" for event in runs[0])


def test_a_race_goes_on_without_items_that_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cannot be made again part by part; what was told stays, and only estimates to come know less."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    case = CASES["raced by generation"]
    session(tmp_path / "run", case, budget=40)
    before = [e for e in canonical_events(RunFolder(tmp_path / "run")) if e["event"] == "told"]
    raced = [file for file in (tmp_path / "run" / "items").glob("search-*") if int(file.stem.split("-")[1]) > 3]
    for file in raced[::2]:
        file.unlink()
    for checkpoints in (True, False):
        shutil.copytree(tmp_path / "run", tmp_path / f"more-{checkpoints}")
        session(tmp_path / f"more-{checkpoints}", case, budget=55, checkpoints=checkpoints)
        after = [e for e in canonical_events(RunFolder(tmp_path / f"more-{checkpoints}")) if e["event"] == "told"]
        assert after[: len(before)] == before
        assert sum(e["split"] == "search" for e in after) == 4 + 55

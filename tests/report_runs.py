"""Run folders written by real searches whose models are formulas: what reports are made of, in no time."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.objectives import Objective
from evomerge.protocols import SearchSpace, Strategy
from evomerge.recipes.method_spec import MethodSpec, ParameterSpec
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import LAYER_COMPONENTS, ModelRef, SliceId
from evomerge.recipes.yaml_reader import dump_recipe
from evomerge.report.html.shares import shares_of
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger
from evomerge.search.incumbent import Incumbent
from evomerge.search.loop import Search
from evomerge.search.phases import Phase
from evomerge.utils.files import write_text_atomic

LAYERS = 6
SLICES = (
    SliceId("embed"),
    *(SliceId(part, layer) for layer in range(LAYERS) for part in LAYER_COMPONENTS),
    SliceId("final_norm"),
)
METHODS = {
    spec.name: spec
    for spec in (
        MethodSpec(
            "linear", (ParameterSpec("weight", 1.0, per_input=True), ParameterSpec("normalize", True, kind="boolean"))
        ),
        MethodSpec(
            "task_arithmetic",
            (
                ParameterSpec("weight", 1.0, per_input=True, searched=True),
                ParameterSpec("lambda", 1.0),
                ParameterSpec("normalize", False, kind="boolean"),
            ),
            base="required",
        ),
        MethodSpec("slerp", (ParameterSpec("t", 0.5, searched=True),), min_inputs=2, max_inputs=2),
        MethodSpec("passthrough", max_inputs=1),
    )
}
TASKS = ("english_sums", "japanese_talk", "japanese_sums")
ITEMS = 120


def pool(*names: str) -> PoolInfo:
    """A base and sources of six layers."""
    base, *sources = names or ("base", "math", "lang")
    refs = tuple((name, ModelRef(f"models/{name}", fingerprint=f"sha256:{name}")) for name in (base, *sources))
    tensors = tuple(((f"{entry}.weight", 64),) for entry in SLICES)
    return PoolInfo(refs, tuple(sources), base, SLICES, LAYERS, "float32", sizes=(64,) * len(SLICES), tensors=tensors)


class Formula:
    """An evaluator: a model answers an item when it has enough of each source in the layers that matter to it.

    Args:
        info: of the pool; the first two sources are what tasks need.
        objectives: ``score`` is the mean of all tasks; others are the means of tasks whose names contain them.
        fails: says of a candidate why it fails, or ``None``.
    """

    slots = 1

    def __init__(self, info: PoolInfo, objectives: Sequence[Objective], fails: Any = None, items: int = ITEMS) -> None:
        self._first, self._second = info.sources[:2]
        self._objectives, self._fails, self._items = objectives, fails, items
        rng = np.random.default_rng(1)
        self._needs = rng.dirichlet(np.ones(LAYERS), size=2)
        self._hard = {"search": rng.random((3, items)), "held_out": rng.random((3, items))}
        self._queue: deque[tuple[Candidate, Split]] = deque()

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        self._queue.append((candidate, split))

    def collect(self) -> Evaluation:
        candidate, split = self._queue.popleft()
        seconds = {"merge": 0.1 + 0.01 * (candidate.id % 7), "model": 1.0 + 0.05 * (candidate.id % 5), "other": 0.02}
        reason = self._fails(candidate) if self._fails is not None and candidate.genome is not None else None
        if reason is not None:
            return Evaluation(candidate.id, "failed", split, seconds=seconds, error=reason)
        assert candidate.recipe is not None
        skills = self._skills(candidate.recipe)
        values = (skills[0], skills[1], 0.9 * min(skills) + 0.1 * max(skills))
        right = {
            f"{task}/acc": (self._hard[split][place] < values[place]).astype(float) for place, task in enumerate(TASKS)
        }
        metrics = {name: float(scores.mean()) for name, scores in right.items()}
        merge = {"kept": 2, "referenced": 0, "memory": 6, "shared": 0, "computed": 12, "bytes": 20e6}
        return Evaluation(
            candidate.id,
            "ok",
            split,
            {o.name: self._objective(o.name, metrics) for o in self._objectives},
            metrics,
            right,
            seconds,
            merge | {"computed_bytes": 12e6, "saved": 0.05},
        )

    def fingerprint(self, split: Split) -> str:
        return f"sha256:{split}"

    def close(self) -> None:
        pass

    def _skills(self, recipe: Recipe) -> tuple[float, float]:
        shares = shares_of(recipe)
        found = []
        for name, needs in zip((self._first, self._second), self._needs, strict=True):
            own = np.array(
                [
                    np.mean([shares.get(SliceId(p, layer), {}).get(name, 0.0) for p in LAYER_COMPONENTS])
                    for layer in range(LAYERS)
                ]
            )
            found.append(float(np.clip(0.1 + 0.9 * needs @ (1 - (1 - np.clip(own, 0, 1.4)) ** 2), 0, 1)))
        return found[0], found[1]

    @staticmethod
    def _objective(name: str, metrics: dict[str, float]) -> float:
        chosen = [value for metric, value in metrics.items() if name == "score" or name in metric]
        return float(np.mean(chosen))


def write_run(
    folder: Path,
    info: PoolInfo,
    space: SearchSpace,
    strategy: Strategy,
    evaluations: int,
    *,
    objectives: Sequence[Objective] = (Objective("score"),),
    fails: Any = None,
    texts: bool = True,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Search with a formula; the folder has all that a run's has."""
    run = RunFolder.create(folder)
    run.write_pool(info)
    target = f"{type(strategy).__module__}.{type(strategy).__qualname__}"
    settings = {
        "name": "toy",
        "run_dir": str(folder),
        "search_space": {"_target_": f"{type(space).__module__}.{type(space).__qualname__}"},
        "strategy": {"_target_": target},
        "fitness": {"_target_": "fitness.lm_eval_tasks.LmEvalFitness", "tasks": list(TASKS)},
        "held_out": {"tasks": list(TASKS)},
        "search": {"seed": 0, "evaluations": evaluations, "ordered": True},
    }
    for key, value in (config or {}).items():
        settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value  # type: ignore[dict-item]  # both mappings
    run.config.write_text(yaml.safe_dump(settings, sort_keys=False))
    names = {
        task: [{"prompt": f"{task}: question {i}?", "target": f"answer {i}"} for i in range(ITEMS)] for task in TASKS
    }
    if texts:
        (run.items / "held_out-texts.json").write_text(json.dumps({"evomerge_texts": 1, "tasks": names}))

    def keep(incumbent: Incumbent) -> None:
        assert incumbent.best is not None
        assert incumbent.best.recipe is not None
        write_text_atomic(run.best_recipe, dump_recipe(incumbent.best.recipe))

    with Ledger(run, sync="interval") as ledger:
        ledger.append(
            "started",
            seed=0,
            evaluations=evaluations,
            objectives={o.name: o.direction for o in objectives},
            fitness="sha256:search",
            versions={"evomerge": "0.1.0", "torch": "2.9.0"},
        )
        Search(
            pool=info,
            phases=[Phase.of(space, strategy, evaluations)],
            evaluator=Formula(info, objectives, fails),  # type: ignore[arg-type]  # the protocol's, but for names
            incumbent=Incumbent(objectives),
            ledger=ledger,
            keep=keep,
            **options,
        ).run()
    return folder


def parameter_run(folder: Path, evaluations: int = 60, names: Sequence[str] = (), **options: Any) -> Path:
    """CMA-ES over task arithmetic, layer by layer."""
    from evomerge.strategies.cma_es import CmaEs
    from search_spaces.parameter import ParameterSpace

    info = pool(*names)
    space = ParameterSpace(info, METHODS, components="all")
    strategy = CmaEs(space.spec, (Objective("score"),), seed=0, popsize=8)
    return write_run(folder, info, space, strategy, evaluations, **options)


def path_run(folder: Path, evaluations: int = 50) -> Path:
    """CatCMA over paths."""
    from evomerge.strategies.catcma import CatCma
    from search_spaces.data_flow import DataFlowSpace

    info = pool()
    space = DataFlowSpace(info, METHODS)
    strategy = CatCma(space.spec, (Objective("score"),), seed=0)
    return write_run(folder, info, space, strategy, evaluations)


def lineage_run(folder: Path, evaluations: int = 50) -> Path:
    """M2N2 over merges of merges."""
    from evomerge.strategies.m2n2 import M2N2
    from search_spaces.lineage import LineageSpace

    info = pool()
    space = LineageSpace(info, METHODS)
    strategy = M2N2(space.spec, (Objective("score"),), seed=0, size=8)
    return write_run(folder, info, space, strategy, evaluations, config={"strategy": {"size": 8}})


def two_objectives_run(folder: Path, evaluations: int = 60) -> Path:
    """NSGA-II with sums against talk."""
    from evomerge.strategies.optuna_samplers import Nsga2
    from search_spaces.parameter import ParameterSpace

    info = pool()
    objectives = (Objective("sums"), Objective("talk"))
    space = ParameterSpace(info, METHODS, layer_group=2, components="all")
    strategy = Nsga2(space.spec, objectives, seed=0, popsize=12)
    return write_run(folder, info, space, strategy, evaluations, objectives=objectives)


def archive_run(folder: Path, evaluations: int = 60) -> Path:
    """MAP-Elites by two tasks."""
    from evomerge.strategies.map_elites import MapElites
    from search_spaces.parameter import ParameterSpace

    info = pool()
    space = ParameterSpace(info, METHODS, layer_group=2, components="all")
    names = ["english_sums/acc", "japanese_talk/acc"]
    strategy = MapElites(space.spec, (Objective("score"),), seed=0, descriptors=names, cells=8)
    config = {"strategy": {"descriptors": names, "cells": 8, "archive": "grid", "ranges": None, "objective": None}}
    return write_run(folder, info, space, strategy, evaluations, config=config)


def half_failed(candidate: Candidate) -> str | None:
    """Every other candidate fails, for one of three reasons."""
    if candidate.id % 2:
        return None
    reasons = (
        f"OutOfMemoryError: tried to allocate {2 + candidate.id}.50 GiB at batch size 1",
        f"FitnessError: the score of english_sums, document {candidate.id}, is NaN",
        "worker 1 died (signal 9) twice",
    )
    return reasons[candidate.id // 2 % 3]


def failed_run(folder: Path, evaluations: int = 60) -> Path:
    """A search that failed half of its candidates."""
    return parameter_run(folder, evaluations, fails=half_failed)

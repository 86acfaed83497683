"""Searches in processes of their own, killed at seeded instants and gone on with: shared by tests."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import InfeasibleError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Strategy
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import ModelRef, SliceId
from evomerge.run.checkpoint import Checkpoints
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger, canonical_events
from evomerge.run.record import Record
from evomerge.search.incumbent import Incumbent
from evomerge.search.loop import Search
from evomerge.search.phases import Phase
from evomerge.session.checkpointing import CheckpointSaver, begin
from evomerge.session.replay import ContinuedLedger, RecordedEvaluator
from evomerge.strategies.cma_es import CmaEs
from evomerge.strategies.genetic import GeneticAlgorithm
from evomerge.strategies.m2n2 import M2N2
from evomerge.strategies.random_search import RandomSearch
from search_spaces.lineage import LineageSpace

OBJECTIVES = (Objective("score"),)
MODELS = ("a", "b", "c")
POOL = PoolInfo(
    refs=tuple((name, ModelRef(name, fingerprint=f"sha256:{name}")) for name in ("base", *MODELS)),
    sources=MODELS,
    base="base",
    slices=(SliceId("embed"), SliceId("attn", 0), SliceId("mlp", 0)),
    layers=1,
    dtype="float32",
)
STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "cma_es": CmaEs,
    "random": RandomSearch,
    "ga": GeneticAlgorithm,
    "m2n2": M2N2,
}


class Weights:
    """A weight for each model; those that sum to more than 2.4 have no model."""

    spec = GenomeSpec(tuple(Gene(name) for name in MODELS))

    def decode(self, genome: Genome) -> Recipe:
        """The weighted sum."""
        weights = dict(zip(MODELS, (float(value) for value in genome.values), strict=True))
        if sum(weights.values()) > 2.4:
            raise InfeasibleError(f"weights sum to {sum(weights.values()):g}")
        return POOL.linear(weights)


class Workers:
    """Several workers that finish in an order of chance, another one in every session.

    They score by the weights, or, where recipes are lineages, by the bits of the hash.
    """

    def __init__(self, slots: int, seconds: float, hashed: bool) -> None:
        self.slots, self._seconds, self._hashed = slots, seconds, hashed
        self._rng = np.random.default_rng()  # no seed: no session is like another
        self._queue: list[tuple[Candidate, Split]] = []

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        """Queue it."""
        self._queue.append((candidate, split))

    def collect(self) -> Evaluation:
        """Finish any of those that are running."""
        time.sleep(self._seconds * float(self._rng.random()))
        candidate, split = self._queue.pop(int(self._rng.integers(min(self.slots, len(self._queue)))))
        assert candidate.recipe is not None
        if self._hashed:
            bits = np.array([int(digit, 16) % 2 for digit in candidate.recipe.hash[:12]], dtype=np.float64)
            value = float(bits.mean())
            return Evaluation(candidate.id, "ok", split, {"score": value}, {"task/acc": value}, {"task/acc": bits})
        of = {i.model: float(dict(i.parameters)["weight"]) for i in candidate.recipe.slices[0].inputs}
        if 0.30 < of.get("a", 0) < 0.32:
            return Evaluation(candidate.id, "failed", split, error="it broke")
        value = 1 - sum((of.get(name, 0) - best) ** 2 for name, best in zip(MODELS, (0.7, 0.2, 0.4), strict=True))
        items = {"task/acc": (value > np.linspace(-1, 1, 12)).astype(np.float64)}
        return Evaluation(candidate.id, "ok", split, {"score": value}, {"task/acc": value}, items)

    def fingerprint(self, split: Split) -> str:
        """Always the same."""
        return "sha256:durable"

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        strategy: one of `STRATEGIES`.
        evaluations: the budget.
        slots: workers.
        ordered, in_flight: as in a search.
        seconds: the longest evaluation.
        lineage: whether candidates are merges of merges.
        checkpoint: evaluations between two checkpoints; ``None`` for none.
        address: of a Ray cluster whose workers evaluate; ``None`` for this process.
    """

    strategy: str
    evaluations: int = 60
    slots: int = 1
    ordered: bool = True
    in_flight: int | None = None
    seconds: float = 0.001
    lineage: bool = False
    checkpoint: int | None = 7
    address: str | None = None


def session(path: Path, plan: Plan, stop: Callable[[], bool] = lambda: False, evaluator: Any = None) -> None:
    """Begin a run, or go on with it, in this process; `Workers` evaluate unless there is another `evaluator`."""
    folder = RunFolder(path)
    record = Record(folder) if folder.ledger.exists() else None
    if record is None:
        shutil.rmtree(path, ignore_errors=True)  # killed while the folder was made
        folder = RunFolder.create(path)
    evaluator = evaluator or _evaluator(plan)
    space: Any = LineageSpace(POOL, dict.fromkeys(("slerp", "linear")), split="slice") if plan.lineage else Weights()  # type: ignore[arg-type]
    make = STRATEGIES[plan.strategy]
    phase = Phase(
        "search", plan.evaluations, lambda winner: space, lambda spec, baselines: make(spec, OBJECTIVES, seed=3)
    )
    keep = 0 if plan.checkpoint is None else 2
    ledger = (
        Ledger(folder, sync="interval")
        if record is None
        else ContinuedLedger(folder, record, resumed={}, sync="interval")
    )
    with ledger, Checkpoints(folder, every=None, evaluations=plan.checkpoint, keep=keep) as checkpoints:
        ledger.append("started", seed=3, evaluations=plan.evaluations)
        search = Search(
            pool=POOL,
            phases=[phase],
            evaluator=evaluator if record is None else RecordedEvaluator(evaluator, record),
            incumbent=Incumbent(OBJECTIVES),
            ledger=ledger,
            keep=lambda incumbent: None,
            ordered=plan.ordered,
            in_flight=plan.in_flight,
            stop=stop,
            save=CheckpointSaver(checkpoints, ledger),
        )
        if isinstance(ledger, ContinuedLedger):
            begin(search, ledger)
        search.run()
    evaluator.close()


def _evaluator(plan: Plan) -> Any:
    if plan.address is None:
        return Workers(plan.slots, plan.seconds, plan.lineage)
    from ray_runs import evaluator

    return evaluator(plan.address, plan.slots, plan.seconds, plan.lineage)


def start(path: Path, plan: Plan) -> Any:
    """A session in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=session, args=(path, plan))
    process.start()
    return process


def kill_at(process: Any, ledger: Path, nbytes: int, delay: float) -> bool:
    """SIGKILL a little after the ledger has this many bytes; ``False`` when the process had ended before."""
    while process.is_alive():
        size = 0
        with contextlib.suppress(FileNotFoundError):
            size = ledger.stat().st_size
        if size >= nbytes:
            time.sleep(delay)
            break
        time.sleep(0.0005)
    alive = bool(process.is_alive())
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return alive and process.exitcode == -signal.SIGKILL


def run_killed(
    path: Path, plan: Plan, size: int, kills: int, rng: np.random.Generator, slots: int | None = None
) -> int:
    """Run to the end through `kills` kills at instants of the ledger's growth; returns how many hit.

    Args:
        path: of the run folder.
        plan: what is run.
        size: bytes of the whole ledger.
        kills: how many.
        rng: chooses the instants.
        slots: workers of every session after the first.
    """
    hits = 0
    for number, nbytes in enumerate(sorted(rng.integers(0, size, kills).tolist())):
        now = plan if not number or slots is None else Plan(**{**vars(plan), "slots": slots})
        hits += kill_at(start(path, now), RunFolder(path).ledger, nbytes, float(rng.random()) * 0.003)
    last = start(path, plan)
    last.join()
    assert last.exitcode == 0
    return hits


def content(path: Path) -> list[dict[str, Any]]:
    """What a run did, without when and how long."""
    return canonical_events(RunFolder(path))

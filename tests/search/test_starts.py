"""Starts that a search space gives: the baselines of a search, and what its strategy is told first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from search.test_search import Evaluator, score

from evomerge.candidate import Candidate, Evaluation
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Strategy
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import ModelRef, SliceId
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger, read_ledger
from evomerge.search.incumbent import Incumbent
from evomerge.search.loop import Search
from evomerge.search.phases import Phase
from evomerge.session.bounded_space import BoundedSpace
from evomerge.strategies.cma_es import CmaEs
from evomerge.strategies.genetic import GeneticAlgorithm
from search_spaces.checkpoints import CheckpointSpace

POOL = PoolInfo(
    refs=tuple((name, ModelRef(name, fingerprint=f"sha256:{name}")) for name in ("first", "a", "b")),
    sources=("a", "b"),
    base="first",
    slices=(SliceId("embed"), SliceId("attn", 0)),
    layers=1,
    dtype="float32",
)
OBJECTIVE = Objective("score")


def searched(folder: Path, build: Callable[[GenomeSpec], Strategy], **settings: Any) -> tuple[Search, RunFolder]:
    """A search of 12 evaluations over three checkpoints; a at 0.7 and b at 0.2 are best."""
    space = CheckpointSpace(POOL, {}, rates=[0.5])
    run = RunFolder.create(folder)
    phase = Phase("search", 12, lambda winner: space, lambda spec, baselines: build(spec))
    with Ledger(run) as ledger:
        search = Search(
            pool=POOL,
            phases=[phase],
            evaluator=Evaluator(),
            incumbent=Incumbent((OBJECTIVE,)),
            ledger=ledger,
            keep=lambda incumbent: None,
            held_out=False,
            **settings,
        )
        search.run()
    return search, run


def events(run: RunFolder, kind: str) -> list[Any]:
    return [event for event in read_ledger(run) if event["event"] == kind]


def test_starts_are_the_baselines_and_the_strategy_is_told_of_them(tmp_path: Path) -> None:
    told: list[tuple[Candidate, Evaluation]] = []

    class Noting(GeneticAlgorithm):
        def inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
            told.append((candidate, evaluation))
            super().inject(candidate, evaluation)

    search, run = searched(tmp_path / "run", lambda spec: Noting(spec, [OBJECTIVE], seed=0, popsize=4, spread="auto"))
    asked = events(run, "asked")
    assert [event["name"] for event in asked[:3]] == ["b", "uniform average", "EMA 0.5"]
    assert [event["source"] for event in events(run, "warm")] == [
        *("baseline b", "baseline uniform average", "baseline EMA 0.5"),
    ]
    assert len(asked) == 3 + 12  # nothing is scored a second time
    for candidate, evaluation in told:
        assert candidate.recipe is not None
        assert evaluation.objectives["score"] == pytest.approx(score(candidate.recipe))
    assert [candidate.genome for candidate, _ in told] == list(CheckpointSpace(POOL, {}, rates=[0.5]).starts.values())
    assert search.best is not None


def test_strategies_that_begin_at_one_point_begin_at_the_best_start(tmp_path: Path) -> None:
    began: list[Genome] = []

    def build(spec: GenomeSpec) -> Strategy:
        began.append(spec.initial)
        return CmaEs(spec, [OBJECTIVE], seed=0, popsize=4)

    searched(tmp_path / "run", build)
    starts = CheckpointSpace(POOL, {}, rates=[0.5]).starts
    assert began == [starts["uniform average"]]  # 0.33 and 0.33 are nearest to 0.7 and 0.2


def test_without_baselines_starts_are_evaluated_first(tmp_path: Path) -> None:
    _, run = searched(tmp_path / "run", lambda spec: CmaEs(spec, [OBJECTIVE], seed=0, popsize=4), baselines=False)
    asked = events(run, "asked")
    starts = CheckpointSpace(POOL, {}, rates=[0.5]).starts
    assert len(asked) == 12
    assert [tuple(event["genome"]) for event in asked[:3]] == [genome.values for genome in starts.values()]
    assert not events(run, "warm")


def test_bounds_keep_the_starts_that_lie_within_them() -> None:
    space = BoundedSpace(CheckpointSpace(POOL, {}, rates=[0.5]), {"*/a/weight": [0, 0.3]}, "search_space.bounds")
    assert list(space.starts) == ["b", "EMA 0.5"]
    assert list(space.baselines) == ["b", "uniform average", "EMA 0.5"]
    fixed = BoundedSpace(CheckpointSpace(POOL, {}, rates=[0.5]), {"*/a/weight": 0.0}, "search_space.bounds")
    assert fixed.starts == {"b": Genome((1.0,))}

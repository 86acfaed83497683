from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.baselines import UNIFORM
from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import EvomergeError, InfeasibleError
from evomerge.genome import Gene, Genome, GenomeSpec
from evomerge.incumbent import Incumbent
from evomerge.ledger import Ledger, RunFolder, canonical_events
from evomerge.phases import Phase
from evomerge.protocols import Objective, Strategy
from evomerge.recipe import ModelRef, PoolInfo, Recipe, SliceId
from evomerge.search import Search
from evomerge.strategies.cma_es import CmaEs

POOL = PoolInfo(
    refs=tuple((name, ModelRef(name, fingerprint=f"sha256:{name}")) for name in ("base", "a", "b")),
    sources=("a", "b"),
    base="base",
    slices=(SliceId("embed"), SliceId("attn", 0), SliceId("mlp", 0)),
    layers=1,
    dtype="float32",
)


class TwoWeights:
    """Two weights; those that sum to more than 1.5 have no model."""

    spec = GenomeSpec((Gene("a"), Gene("b")))

    def decode(self, genome: Genome) -> Recipe:
        a, b = (float(value) for value in genome.values)
        if a + b > 1.5:
            raise InfeasibleError(f"weights sum to {a + b}")
        return POOL.linear({"a": a, "b": b})


def score(recipe: Recipe) -> float:
    weights = {i.model: float(dict(i.parameters)["weight"]) for i in recipe.slices[0].inputs}
    return 1 - (weights.get("a", 0) - 0.7) ** 2 - (weights.get("b", 0) - 0.2) ** 2


class Evaluator:
    """Scores by formula; several `slots` finish in reverse order, as workers of unequal speed would."""

    def __init__(self, slots: int = 1, fails: frozenset[int] = frozenset()) -> None:
        self.slots = slots
        self.fails = fails
        self._queue: deque[tuple[Candidate, Split]] = deque()

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        self._queue.append((candidate, split))

    def collect(self) -> Evaluation:
        running = min(self.slots, len(self._queue)) - 1
        candidate, split = self._queue[running]
        del self._queue[running]
        assert candidate.recipe is not None
        if candidate.id in self.fails:
            return Evaluation(candidate.id, "failed", split, error="it broke")
        value = score(candidate.recipe)
        return Evaluation(
            candidate.id,
            "ok",
            split,
            objectives={"score": value},
            metrics={"task/acc": value},
            items={"task/acc": np.array([value, 1.0])},
        )

    def fingerprint(self, split: Split) -> str:
        return "sha256:none"

    def close(self) -> None:
        pass


def run(
    folder: Path,
    evaluator: Evaluator,
    evaluations: int = 40,
    kept: list[Recipe] | None = None,
    strategy: Strategy | None = None,
    **options: Any,
) -> Search:
    space = TwoWeights()
    strategy = strategy or CmaEs(space.spec, (Objective("score"),), seed=0, popsize=6)
    with Ledger(RunFolder.create(folder)) as ledger:
        search = Search(
            **{
                "pool": POOL,
                "phases": [Phase.of(space, strategy, evaluations)],
                "evaluator": evaluator,
                "incumbent": Incumbent((Objective("score"),)),
                "ledger": ledger,
                "keep": lambda incumbent: ([] if kept is None else kept).append(incumbent.best.recipe),
            }
            | options
        )
        search.run()
    return search


def told(events: Sequence[dict], split: str) -> list[dict]:
    return [event for event in events if event["event"] == "told" and event["split"] == split]


def test_baselines_come_first_then_exactly_the_budget(tmp_path: Path) -> None:
    run(tmp_path / "run", Evaluator(), evaluations=20)
    events = canonical_events(tmp_path / "run")
    names = [event["name"] for event in events if event["event"] == "asked" and event["split"] == "search"]
    assert names[:4] == ["a", "b", "base", UNIFORM]
    assert names[4:] == [None] * 20
    assert [event["candidate"] for event in told(events, "search")] == list(range(24))


def test_held_out_scores_the_baselines_and_the_best(tmp_path: Path) -> None:
    search = run(tmp_path / "run", Evaluator())
    events = canonical_events(tmp_path / "run")
    assert search.best is not None
    assert [event["candidate"] for event in told(events, "held_out")] == [0, 1, 2, 3, search.best.id]
    assert events[-1]["event"] == "stopped"


def test_finds_the_optimum_and_keeps_every_improvement(tmp_path: Path) -> None:
    kept: list[Recipe] = []
    search = run(tmp_path / "run", Evaluator(), evaluations=120, kept=kept)
    assert search.best_value == pytest.approx(1.0, abs=1e-3)
    values = [score(recipe) for recipe in kept]
    assert values == sorted(values)
    assert search.best is not None
    assert kept[-1] == search.best.recipe


def test_the_ledger_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    for slots in (1, 2, 5):
        run(tmp_path / f"run{slots}", Evaluator(slots))
    one = canonical_events(tmp_path / "run1")
    assert canonical_events(tmp_path / "run2") == one
    assert canonical_events(tmp_path / "run5") == one


def test_infeasible_and_failed_candidates_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    search = run(tmp_path / "run", Evaluator(fails=frozenset(range(5, 40, 3))))
    events = canonical_events(tmp_path / "run")
    status = {event["candidate"]: event["status"] for event in told(events, "search")}
    assert len(status) == 44
    assert "failed" in status.values()
    infeasible = [event for event in told(events, "search") if event["status"] == "infeasible"]
    assert infeasible
    assert all(event["error"].startswith("weights sum to") for event in infeasible)
    assert search.best is not None
    assert status[search.best.id] == "ok"
    assert sum(events[-1]["counts"].values()) == 40


def test_a_baseline_that_fails_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(EvomergeError, match="'b' could not be scored on the search items: it broke"):
        run(tmp_path / "run", Evaluator(fails=frozenset({1})))


def test_when_every_candidate_fails_there_is_no_best(tmp_path: Path) -> None:
    search = run(tmp_path / "run", Evaluator(fails=frozenset(range(4, 100))), evaluations=12)
    assert search.best is None
    assert not told(canonical_events(tmp_path / "run"), "held_out")

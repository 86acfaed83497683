from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import EvomergeError, InfeasibleError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Proposal, SearchSpace, Strategy
from evomerge.recipes.pool_info import UNIFORM, PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import ModelRef, SliceId
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger, canonical_events
from evomerge.run.record import Record
from evomerge.search.hooks import GaveUpError
from evomerge.search.incumbent import Incumbent
from evomerge.search.loop import Search
from evomerge.search.phases import Phase
from evomerge.session.replay import ContinuedLedger, RecordedEvaluator
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
    with Ledger(RunFolder.create(folder), sync="interval") as ledger:
        return run_in(ledger, evaluator, evaluations, kept, strategy, **options)


def run_in(
    ledger: Ledger,
    evaluator: Any,
    evaluations: int = 40,
    kept: list[Recipe] | None = None,
    strategy: Strategy | None = None,
    **options: Any,
) -> Search:
    space = TwoWeights()
    strategy = strategy or CmaEs(space.spec, (Objective("score"),), seed=0, popsize=6)
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
    assert search.incumbent.value == pytest.approx(1.0, abs=1e-3)
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


def test_a_search_that_only_fails_ends_with_the_reason(tmp_path: Path) -> None:
    """Numbers in the reason aside. Resumed, it goes on: what was broken may work again."""

    class Broken(Evaluator):
        def collect(self) -> Evaluation:
            found = super().collect()
            if found.candidate < 14:
                return found
            return Evaluation(found.candidate, "failed", error=f"no room for {found.candidate} MB")

    with pytest.raises(GaveUpError, match="7 candidates in a row failed the same way: no room for") as raised:
        run(tmp_path / "run", Broken(), give_up=7)
    assert raised.value.exit_status == 1
    events = list(canonical_events(RunFolder(tmp_path / "run")))
    failed = [event["candidate"] for event in told(events, "search") if event["status"] == "failed"]
    assert len(failed) == 7
    assert all(event["event"] != "stopped" for event in events)

    record = Record(RunFolder(tmp_path / "run"))
    with ContinuedLedger(RunFolder(tmp_path / "run"), record, resumed={}) as ledger:
        search = run_in(ledger, RecordedEvaluator(Evaluator(), record), give_up=7)
    assert search.best is not None
    events = list(canonical_events(RunFolder(tmp_path / "run")))
    assert events[-1]["reason"] == "budget"
    assert events[-1]["counts"]["failed"] == 7


def test_a_baseline_that_fails_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(EvomergeError, match="'b' could not be scored on the search items: it broke"):
        run(tmp_path / "run", Evaluator(fails=frozenset({1})))


def test_when_every_candidate_fails_there_is_no_best(tmp_path: Path) -> None:
    search = run(tmp_path / "run", Evaluator(fails=frozenset(range(4, 100))), evaluations=12)
    assert search.best is None
    assert not told(canonical_events(tmp_path / "run"), "held_out")


class Steady:
    """A strategy that never waits: what it proposes depends on everything that it was told, and in which order."""

    asynchronous = True

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._best = (0.5, 0.5)
        self._sum = 0.0
        self.injected: list[int] = []

    def ask(self, n: int | None = None) -> list[Proposal]:
        values = self._rng.uniform(-0.1, 0.1, (1 if n is None else n, 2)) + self._best + 0.01 * (self._sum % 1)
        return [Proposal(TwoWeights.spec.genome(row)) for row in values]

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        value = evaluation.objectives.get("score", 0.0)
        self._sum = 0.5 * self._sum + value
        if value > 0.99 * score(POOL.linear(dict(zip("ab", self._best, strict=True)))):
            assert candidate.genome is not None
            self._best = tuple(float(v) for v in candidate.genome.values)

    def inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self.injected.append(candidate.id)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


class Shuffled(Evaluator):
    """Finishes in an order drawn at random among the candidates that run."""

    def __init__(self, slots: int, seed: int) -> None:
        super().__init__(slots)
        self._rng = np.random.default_rng(seed)

    def collect(self) -> Evaluation:
        running = min(self.slots, len(self._queue))
        self._queue.rotate(-int(self._rng.integers(running)))
        slots, self.slots = self.slots, 1
        try:
            return Evaluator.collect(self)
        finally:
            self.slots = slots


class Replayed(Evaluator):
    """Hands out evaluations in the order of a ledger."""

    def __init__(self, slots: int, events: Sequence[dict]) -> None:
        super().__init__(slots)
        self._order = [e["candidate"] for e in events if e["event"] == "told" and e["status"] != "infeasible"]

    def collect(self) -> Evaluation:
        number = self._order.pop(0)
        place = next(i for i, (candidate, _) in enumerate(self._queue) if candidate.id == number)
        self._queue.rotate(-place)
        slots, self.slots = self.slots, 1
        try:
            return Evaluator.collect(self)
        finally:
            self.slots = slots


def test_steady_state_in_order_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    for slots in (1, 3, 8):
        run(tmp_path / f"run{slots}", Shuffled(slots, seed=slots), strategy=Steady(), in_flight=4)
    one = canonical_events(tmp_path / "run1")
    assert canonical_events(tmp_path / "run3") == one
    assert canonical_events(tmp_path / "run8") == one
    order = [(e["event"], e["candidate"]) for e in one if e["event"] in ("asked", "told")][8:]
    assert order[:8] == [*(("asked", i) for i in range(4, 8)), ("told", 4), ("asked", 8), ("told", 5), ("asked", 9)]


def test_without_order_every_worker_has_work_and_the_ledger_is_that_of_arrival(tmp_path: Path) -> None:
    search = run(tmp_path / "run", Shuffled(4, seed=3), strategy=Steady(), ordered=False, evaluations=60)
    events = canonical_events(tmp_path / "run")
    order = [e["candidate"] for e in told(events, "search")][4:]
    assert sorted(order) == list(range(4, 64))
    assert order != sorted(order)
    flying = 0
    for event in (
        e for e in events if e["event"] in ("asked", "told") and e["split"] == "search" and not e.get("name")
    ):
        if event["event"] == "asked":
            flying += 1
        elif event["candidate"] >= 4:
            assert flying >= 5 or event["candidate"] > 55  # four workers and one that waits, until the budget ends
            flying -= 1
    assert search.best is not None


def test_a_run_without_order_replays_exactly_from_its_ledger(tmp_path: Path) -> None:
    run(tmp_path / "first", Shuffled(4, seed=5), strategy=Steady(), ordered=False, evaluations=50)
    events = canonical_events(tmp_path / "first")
    run(tmp_path / "again", Replayed(4, events), strategy=Steady(), ordered=False, evaluations=50)
    assert canonical_events(tmp_path / "again") == events
    run(tmp_path / "other", Shuffled(4, seed=6), strategy=Steady(), ordered=False, evaluations=50)
    assert canonical_events(tmp_path / "other") != events


class TeachingCmaEs(CmaEs):
    """Has every other candidate to learn from only."""

    def may_win(self, candidate: Candidate) -> bool:
        return candidate.id % 2 == 0


def test_candidates_to_learn_from_are_told_and_never_win(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", Evaluator())
    strategy = TeachingCmaEs(TwoWeights.spec, (Objective("score"),), seed=0, popsize=6)
    search = run(tmp_path / "taught", Evaluator(), strategy=strategy, finalists=3, rescores=True)
    every = [canonical_events(RunFolder(tmp_path / name)) for name in ("plain", "taught")]
    scores = [[event["objectives"] for event in told(events, "search")] for events in every]
    assert scores[0] == scores[1]
    improved = [event["candidate"] for event in every[1] if event["event"] == "improved"]
    assert improved
    assert all(number % 2 == 0 for number in improved)
    first = [event for event in every[0] if event["event"] == "improved"]
    assert any(event["candidate"] % 2 for event in first)
    assert search.best is not None
    assert search.best.id % 2 == 0
    assert plain.best is not None
    assert {event["candidate"] % 2 for event in told(every[1], "validation")} == {0}


def test_the_next_phase_begins_with_the_winner(tmp_path: Path) -> None:
    given: list[Recipe | None] = []

    def second(winner: Recipe | None) -> SearchSpace:
        given.append(winner)
        return TwoWeights()

    strategy = CmaEs(TwoWeights.spec, (Objective("score"),), seed=0, popsize=6)
    phases = [
        Phase.of(TwoWeights(), strategy, 20, "merge"),
        Phase("path", 15, second, lambda spec, baselines: Steady(len(baselines)), takes_winner=True),
    ]
    search = run(tmp_path / "run", Evaluator(), phases=phases)
    events = canonical_events(tmp_path / "run")
    first, then = (event for event in events if event["event"] == "phase")
    assert (first["phase"], first["number"], first["phases"], first["winner"]) == ("merge", 1, 2, None)
    assert (then["phase"], then["evaluations"], then["genes"]) == ("path", 15, ["a", "b"])
    before = [e for e in events[: events.index(then)] if e["event"] == "improved"][-1]
    assert then["winner"] == before["candidate"]
    assert [recipe.hash for recipe in given if recipe] == [before["recipe_hash"]]
    assert [e["candidate"] for e in told(events, "search")] == list(range(39))
    assert events[-1]["evaluations"] == 35
    assert search.best is not None


def test_a_phase_that_needs_a_winner_does_not_run_without_one(tmp_path: Path) -> None:
    phases = [
        Phase.of(TwoWeights(), Steady(), 8, "merge"),
        Phase("path", 8, lambda winner: TwoWeights(), lambda spec, baselines: Steady(), takes_winner=True),
    ]
    run(tmp_path / "run", Evaluator(fails=frozenset(range(4, 99))), phases=phases)
    events = canonical_events(tmp_path / "run")
    assert events[-1]["reason"].startswith("no candidate could be scored, and phase path")
    assert events[-1]["evaluations"] == 8


def test_without_baselines_they_are_still_scored_on_held_out_items(tmp_path: Path) -> None:
    search = run(tmp_path / "run", Evaluator(), baselines=False)
    events = canonical_events(tmp_path / "run")
    assert [e["candidate"] for e in told(events, "search")] == list(range(40))
    names = [e["name"] for e in events if e["event"] == "asked" and e["split"] == "held_out"]
    assert names == ["a", "b", "base", UNIFORM, "best"]
    assert search.best is not None

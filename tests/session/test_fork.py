"""A run that begins with another one's evaluations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from search.test_search import POOL, Evaluator, TwoWeights, told

from evomerge.candidate import Evaluation
from evomerge.errors import ConfigError, EvomergeError
from evomerge.objectives import Objective
from evomerge.protocols import Strategy
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger, canonical_events
from evomerge.search.incumbent import Incumbent
from evomerge.search.loop import Search
from evomerge.search.phases import Phase
from evomerge.session.fork import ForkedEvaluator, Source
from evomerge.session.phase_entries import longer_last
from evomerge.strategies.genetic import GeneticAlgorithm
from evomerge.strategies.random_search import RandomSearch

OBJECTIVES = (Objective("score"),)


class Counting(Evaluator):
    """Counts what it evaluates."""

    def __init__(self, slots: int = 1, fails: frozenset[int] = frozenset()) -> None:
        super().__init__(slots, fails)
        self.count = 0

    def collect(self) -> Evaluation:
        self.count += 1
        return super().collect()


def run(path: Path, evaluator: Any, evaluations: int, strategy: Strategy | None = None, **options: Any) -> list[dict]:
    space = TwoWeights()
    strategy = strategy or GeneticAlgorithm(space.spec, OBJECTIVES, seed=0, popsize=6)
    with Ledger(RunFolder.create(path), sync="interval") as ledger:
        ledger.append("started", fitness=evaluator.fingerprint("search"))
        phases = [Phase.of(space, strategy, evaluations)]
        Search(POOL, phases, evaluator, Incumbent(OBJECTIVES), ledger, lambda incumbent: None, **options).run()
    return canonical_events(RunFolder(path))


@pytest.mark.parametrize("options", [{}, {"in_flight": 3}, {"ordered": False, "in_flight": 3}], ids=str)
def test_it_repeats_the_run_as_far_as_it_goes(options: dict, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", Counting(3), 50, **options)
    begun = run(tmp_path / "begun", Counting(3), 30, **options)
    counting = Counting(3)
    source = Source(RunFolder(tmp_path / "begun"))
    evaluator = ForkedEvaluator(counting, source)
    forked = run(tmp_path / "fork", evaluator, 50, **options)
    scored = [event for event in told(begun, "search") if event["status"] == "ok"]
    assert evaluator.copied >= len(scored)
    assert counting.count + evaluator.copied == sum(
        e["event"] == "told" and e["status"] != "infeasible" for e in forked
    )
    assert told(forked, "search")[: len(told(begun, "search")) - 3] == told(begun, "search")[:-3]
    if options.get("ordered", True):
        assert forked == whole
    assert source.event == {
        "run": str(tmp_path / "begun"),
        "events": sum(1 for _ in RunFolder(tmp_path / "begun").ledger.open()),
        "evaluations": len(source),
    }
    items = RunFolder(tmp_path / "fork").items_file(scored[-1]["candidate"], "search")
    assert (
        items.read_bytes() == RunFolder(tmp_path / "begun").items_file(scored[-1]["candidate"], "search").read_bytes()
    )


def test_another_strategy_shares_the_baselines(tmp_path: Path) -> None:
    run(tmp_path / "begun", Counting(), 20)
    counting = Counting()
    evaluator = ForkedEvaluator(counting, Source(RunFolder(tmp_path / "begun")))
    run(tmp_path / "fork", evaluator, 20, RandomSearch(TwoWeights.spec, OBJECTIVES, seed=9))
    assert evaluator.copied >= 4  # base, a, b and their average
    assert counting.count > 10


def test_failures_and_lost_items_are_evaluated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun = run(tmp_path / "begun", Counting(fails=frozenset({9, 12})), 20)
    failed = [event["candidate"] for event in told(begun, "search") if event["status"] == "failed"]
    assert failed
    lost = next(e["candidate"] for e in told(begun, "search") if e["status"] == "ok" and e["candidate"] > 3)
    (tmp_path / "begun" / "items" / f"search-{lost}.safetensors").unlink()
    counting = Counting()
    with caplog.at_level(logging.WARNING):
        forked = run(tmp_path / "fork", ForkedEvaluator(counting, Source(RunFolder(tmp_path / "begun"))), 20)
    again = {e["candidate"]: e["status"] for e in told(forked, "search")}
    assert [again[number] for number in failed] == ["ok"] * len(failed)
    assert f"candidate {lost} is evaluated" in caplog.text
    assert again[lost] == "ok"


def test_another_fitness_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "begun", Counting(), 5)
    source = Source(RunFolder(tmp_path / "begun"))
    source.check("sha256:none")
    with pytest.raises(EvomergeError, match=r"from_run: the fitness has fingerprint other.*warm_start"):
        source.check("other")


def test_only_the_last_of_several_phases_grows() -> None:
    config = OmegaConf.create(
        {"search": {"evaluations": 130}, "phases": {"a": {"evaluations": 0.5}, "b": None, "c": {"evaluations": 20}}}
    )
    config.phases.b = {"evaluations": None}
    assert longer_last(config, 100) == {"a": 50, "b": 30, "c": 50}
    assert [config.phases[name].evaluations for name in "abc"] == [50, 30, 50]
    config.search.evaluations = 120
    with pytest.raises(ConfigError, match=r"search\.evaluations was 130"):
        longer_last(config, 130)

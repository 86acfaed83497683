import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_search import POOL, Evaluator, Steady, TwoWeights, run, run_in, score, told

from evomerge.errors import ConfigError, InfeasibleError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import dump_recipe
from evomerge.run.folder import RunFolder
from evomerge.run.items import read_items
from evomerge.run.ledger import canonical_events, read_ledger
from evomerge.run.record import Record
from evomerge.search.warm_start import WarmStartSources
from evomerge.session.replay import ContinuedLedger, RecordedEvaluator
from evomerge.strategies.cma_es import CmaEs

SCORE = (Objective("score"),)
PRINT = "sha256:none"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A run of 20 evaluations that began with a fingerprint."""
    run(tmp_path / "earlier", Evaluator(), evaluations=20)
    return tmp_path / "earlier"


def source(folder: Path, fitness: str | None = PRINT, again: int = 3) -> WarmStartSources:
    warm = WarmStartSources([str(folder)], again, SCORE)
    warm._prints = dict.fromkeys(warm._prints or {folder: None}, fitness)
    return warm


def test_what_was_evaluated_by_the_same_fitness_is_told_and_costs_nothing(earlier: Path, tmp_path: Path) -> None:
    warm, strategy = source(earlier), Steady()
    search = run(tmp_path / "run", Evaluator(), 5, strategy=strategy, warm=lambda space, n: warm(space, PRINT, n == 0))
    events = canonical_events(tmp_path / "run")
    given = [e for e in events if e["event"] == "warm"]
    before = [e for e in told(canonical_events(earlier), "search") if e["candidate"] >= 4 and e["status"] == "ok"]
    assert [e["objectives"] for e in given] == [e["objectives"] for e in before]
    assert [e["source"] for e in given] == [f"{earlier}#{e['candidate']}" for e in before]
    assert strategy.injected == [e["candidate"] for e in given]
    assert len(told(events, "search")) == 4 + 5
    assert search.incumbent.value >= max(e["objectives"].get("score", 0) for e in before)
    ok = next(e for e in given if e["status"] == "ok")
    assert np.array_equal(read_items(tmp_path / "run", ok["candidate"])["task/acc"], [ok["objectives"]["score"], 1.0])


def test_another_fitness_evaluates_the_best_again_before_all_others(earlier: Path, tmp_path: Path) -> None:
    warm, strategy = source(earlier), Steady()
    run(tmp_path / "run", Evaluator(), 8, strategy=strategy, warm=lambda space, n: warm(space, "sha256:other", n == 0))
    events = canonical_events(tmp_path / "run")
    assert not [e for e in events if e["event"] == "warm"]
    asked = [e for e in events if e["event"] == "asked" and e["genome"] is not None and e["split"] == "search"]
    values = {tuple(e["genome"]): None for e in read_ledger(earlier) if e["event"] == "asked" and e["genome"]}
    ranked = sorted(values, key=lambda g: -score(POOL.linear(dict(zip("ab", g, strict=True)))) if sum(g) <= 1.5 else 9)
    assert [tuple(e["genome"]) for e in asked[:3]] == ranked[:3]
    assert strategy.injected == [e["candidate"] for e in asked[:3]]
    assert len(asked) == 8


def test_strategies_that_start_from_a_point_start_from_the_best(earlier: Path) -> None:
    warmth = source(earlier)(TwoWeights(), PRINT)
    assert warmth.x0 is not None
    started = warmth.started(TwoWeights.spec)
    assert started.initial == warmth.x0
    best = max(e.objectives.get("score", -9) for _, e, _ in warmth.evaluated)
    assert score(TwoWeights().decode(warmth.x0)) == pytest.approx(best)


def test_a_run_of_other_genes_is_refused(earlier: Path) -> None:
    class Other(TwoWeights):
        spec = GenomeSpec((Gene("c"),))

    with pytest.raises(ConfigError, match=r"has 2 genes: a, b, \.\.\.; this search space has 1: c"):
        source(earlier).check([Other()])


class Encodes(TwoWeights):
    def encode(self, recipe: Recipe) -> Genome:
        weights: dict[str, Any] = {i.model: dict(i.parameters)["weight"] for i in recipe.slices[0].inputs}
        if set(weights) - {"a", "b"}:
            raise InfeasibleError("it uses the base", "weights of a and b only")
        return self.spec.genome([float(weights.get("a", 0.0)), float(weights.get("b", 0.0))])


def test_a_named_recipe_is_the_first_candidate(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(dump_recipe(POOL.linear({"a": 0.7, "b": 0.2})))
    warm = WarmStartSources([str(tmp_path / "good.yaml")], 0, SCORE)
    warm.check([Encodes()])
    warmth = warm(Encodes(), PRINT)
    assert [genome.values for genome in warmth.to_reevaluate] == [(0.7, 0.2)]
    assert not warm(Encodes(), PRINT, first=False).to_reevaluate


def test_a_recipe_that_the_space_cannot_encode_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(dump_recipe(POOL.linear({"base": 1.0})))
    warm = WarmStartSources([str(tmp_path / "base.yaml")], 0, SCORE)
    with pytest.raises(ConfigError, match="it uses the base"):
        warm.check([Encodes()])
    with pytest.raises(ConfigError, match="TwoWeights cannot turn recipes into genomes"):
        warm.check([TwoWeights()])
    with pytest.raises(ConfigError, match="a run folder or a recipe file that exists"):
        WarmStartSources([str(tmp_path / "nothing")], 0, SCORE)


class Beginner(Steady):
    """A strategy that begins with what is good in earlier evaluations."""

    began: tuple[Genome, ...] = ()

    def begin_from(self, genomes: Sequence[Genome]) -> None:
        self.began = tuple(genomes)


@pytest.mark.parametrize("fitness", [PRINT, "sha256:other"])
def test_a_strategy_begins_with_the_earlier_genomes_whatever_their_fitness(
    fitness: str, earlier: Path, tmp_path: Path
) -> None:
    warm, strategy = source(earlier), Beginner()
    run(tmp_path / "run", Evaluator(), 5, strategy=strategy, warm=lambda space, n: warm(space, fitness, n == 0))
    found = [score(TwoWeights().decode(genome)) for genome in strategy.began]
    assert found == sorted(found, reverse=True)
    good = [e for e in told(canonical_events(earlier), "search") if e["candidate"] >= 4 and e["status"] == "ok"]
    assert len(found) == len(good)
    assert found[0] == pytest.approx(max(e["objectives"]["score"] for e in good))


def test_cma_es_begins_there_and_a_resumed_search_too(earlier: Path, tmp_path: Path) -> None:
    def make(given: bool) -> CmaEs:
        return CmaEs(TwoWeights.spec, SCORE, seed=0, popsize=6, warm_start=given)

    warm = source(earlier)
    options = {"warm": lambda space, n: warm(space, PRINT, n == 0), "evaluations": 30}
    run(tmp_path / "cold", Evaluator(), strategy=make(False), **options)
    run(tmp_path / "whole", Evaluator(), strategy=make(True), **options)
    whole = canonical_events(tmp_path / "whole")
    assert whole != canonical_events(tmp_path / "cold")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    lines = (tmp_path / "whole" / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut" / "ledger.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    record = Record(RunFolder(tmp_path / "cut"))
    with ContinuedLedger(RunFolder(tmp_path / "cut"), record, resumed={}, sync="interval") as ledger:
        run_in(ledger, RecordedEvaluator(Evaluator(), record), strategy=make(True), **options)
    assert canonical_events(tmp_path / "cut") == whole

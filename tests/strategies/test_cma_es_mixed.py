"""CMA-ES over genes of every kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from contracts.strategy_player import MAXIMISE, MIXED, Make, Player, outcome, pack, unpack

from evomerge.candidate import Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.strategies.cma_es import CmaEs
from evomerge.strategies.random_search import RandomSearch

GROUPS = GenomeSpec(
    tuple(
        gene
        for i in range(4)
        for gene in (
            Gene(f"{i}/method", "categorical", choices=("linear", "ties", "slerp")),
            Gene(f"{i}/weight"),
            Gene(f"{i}/rank", "integer", low=1, high=9),
            Gene(f"{i}/rescale", "boolean"),
        )
    )
)


def regret(spec: GenomeSpec, genome: Genome) -> float:
    """The best weight depends on the method; ``slerp``, 7 and true are best."""
    total = 0.0
    for i in range(0, len(spec), 4):
        method, weight, rank, rescale = genome.values[i : i + 4]
        number = ("linear", "ties", "slerp").index(str(method))
        total += (float(weight) - 0.3 - 0.1 * number) ** 2 + 0.1 * (2 - number) + ((float(rank) - 7) / 8) ** 2
        total += 0.1 * (not rescale)
    return total


def best(make: Make, score: Callable[[GenomeSpec, Genome], float], evaluations: int, seeds: int) -> float:
    found = []
    for seed in range(seeds):
        player = Player(make(GROUPS, MAXIMISE, seed=seed), GROUPS, score)
        player.run(evaluations)
        found.append(player.best)
    return float(np.median(found))


def test_finds_the_methods_and_numbers_of_every_group() -> None:
    learned = best(CmaEs, regret, 800, 6)
    assert learned < 1e-3  # nothing wrong: the least mistake costs 1/64
    assert best(RandomSearch, regret, 800, 6) > 100 * learned


def test_nothing_but_choices() -> None:
    spec = GenomeSpec(tuple(Gene(f"{i}", "categorical", choices=tuple("abcde")) for i in range(10)))
    player = Player(CmaEs(spec, MAXIMISE, seed=0), spec, lambda _, g: float(sum(v != "d" for v in g.values)))
    player.run(400)
    assert player.best == 0


def test_nothing_but_whole_numbers() -> None:
    spec = GenomeSpec(tuple(Gene(f"{i}", "integer", low=0, high=20) for i in range(8)))
    player = Player(CmaEs(spec, MAXIMISE, seed=0), spec, lambda _, g: float(sum((v - 13) ** 2 for v in g.values)))
    player.run(500)
    assert player.best == 0


def test_whole_numbers_and_choices_never_settle() -> None:
    """Long after convergence every kind of gene still varies: an optimum that moved would be noticed."""
    player = Player(CmaEs(MIXED, MAXIMISE, seed=1, popsize=10), MIXED)
    last = player.run(3000)[-400:]
    for i in (0, 2, 5):
        assert len({genome.values[i] for genome in last}) > 1


def test_all_choices_are_equally_likely_at_first() -> None:
    genomes = [p.genome for p in CmaEs(MIXED, MAXIMISE, seed=0, popsize=3000).ask()]
    counts = Counter(genome.values[0] for genome in genomes)
    assert set(counts) == {"linear", "ties", "slerp"}
    assert max(counts.values()) - min(counts.values()) < 120  # standard errors are 26
    assert {genome.values[3] for genome in genomes} == {"ties"}
    assert {genome.values[6] for genome in genomes} == {3}


def test_failures_teach_choices_nothing() -> None:
    strategy = CmaEs(MIXED, MAXIMISE, seed=0, popsize=8)
    player = Player(strategy, MIXED)
    player.ask()
    only = next(c for c in player.flight if c.genome is not None and c.genome.values[0] == "slerp")
    player.tell(make=lambda c: outcome(c.id, 0.5) if c is only else Evaluation(c.id, "failed", error="x"))
    probabilities = strategy._categorical.probabilities[0]
    assert probabilities.argmax() == 2
    assert probabilities[0] == pytest.approx(probabilities[1])


def test_another_machine_goes_on_from_the_saved_choices() -> None:
    player = Player(CmaEs(MIXED, MAXIMISE, seed=0, popsize=6), MIXED)
    player.run(18)
    player.ask(2)
    state = unpack(pack(player.strategy.state_dict()))
    state["choices"] = (state["choices"] + 1) % 2  # as if they had been drawn otherwise
    resumed = CmaEs(MIXED, MAXIMISE, seed=0, popsize=6)
    with pytest.warns(UserWarning, match="bit for bit"):
        resumed.load_state_dict(state)
    words = [("linear", "ties")[row[0]] for row in state["choices"]]
    assert [p.genome.values[0] for p in resumed.ask()] == words[2:]
    assert resumed.state_dict()["choices"].tolist() == state["choices"].tolist()


def test_kinds_are_part_of_a_saved_state() -> None:
    spec = GenomeSpec((Gene("a"), Gene("k", "integer", low=0, high=1)))
    other = GenomeSpec((Gene("a"), Gene("k", low=0, high=1)))
    state = CmaEs(spec, MAXIMISE, seed=0).state_dict()
    with pytest.raises(ConfigError, match="genes"):
        CmaEs(other, MAXIMISE, seed=0).load_state_dict(state)

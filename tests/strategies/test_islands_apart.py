"""Islands that search different genes, and who of them travels."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import StrategyContract
from contracts.strategy_player import CONTINUOUS, MAXIMISE, MIXED, Make, Player, pack, unpack
from contracts.strategy_player import outcome as scored

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.genomes.lineages import LineageSpec
from evomerge.objectives import Objective
from evomerge.strategies.archives.emigrants import Emigrants
from evomerge.strategies.bases.territory import Territory
from evomerge.strategies.cma_es import CmaEs
from evomerge.strategies.genetic import GeneticAlgorithm
from evomerge.strategies.islands import Islands

GA = partial(GeneticAlgorithm, popsize=4)
SPEC = GenomeSpec(tuple(Gene(name, initial=0.5) for name in ("attn/a", "attn/b", "mlp/a", "mlp/b")))
TWO = (Objective("score"), Objective("size", "minimize"))


class TestIslandsApart(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"islands": 2, "every": 1, "migrants": 0}

    @pytest.fixture
    def make(self) -> Make:
        genes = [["embed/*", "head/*"], ["layers.0/*", "embed/rank"], None]
        options = {"every": 5, "migrants": 3, "share": 0.5, "select": "random", "topology": "scatter", "genes": genes}
        return partial(Islands, strategies=[GA, CmaEs, GA], islands=3, **options)

    def test_one_gene(self, make: Make) -> None:
        super().test_one_gene(partial(make, genes=[["model/*"]]))


def test_a_territory_is_some_genes() -> None:
    land, other = Territory(SPEC, ["attn/*"], "k"), Territory(SPEC, ["mlp/*", "attn/b"], "k")
    assert [gene.name for gene in land.spec] == ["attn/a", "attn/b"]
    assert land.full(land.spec.genome((0.1, 0.2))).values == (0.1, 0.2, 0.5, 0.5)
    genome = SPEC.genome((0.1, 0.2, 0.3, 0.5))
    assert land.own(genome).values == (0.1, 0.2)
    assert land.translated(genome).values == (0.1, 0.2, 0.5, 0.5)
    assert other.translated(genome).values == (0.5, 0.2, 0.3, 0.5)
    assert not land.holds(genome)
    assert land.holds(land.translated(genome))
    assert land.shares(other)
    assert not land.shares(Territory(SPEC, ["mlp/*"], "k"))
    assert Territory(SPEC, None, "k").holds(genome)
    acting = land.active(lambda full: {f"{value}" for value in full.values})
    assert acting(land.spec.genome((0.1, 0.2))) == {"0.1", "0.2", "0.5"}


def apart(**options: object) -> Player:
    """Two islands, of attention and of everything; candidate i is island i % 2's, and its score is -i."""
    given = {"genes": [["attn/*"], None], "every": 8, **options}
    player = Player(Islands(SPEC, MAXIMISE, seed=0, strategies=[GA], islands=2, **given), SPEC)
    player.ask(8)
    player.tell(make=lambda c: scored(c.id, float(c.id)))
    return player


def ids(player: Player, island: int) -> list[int]:
    return player.strategy._islands[island].state_dict()["members"]["ids"].tolist()


def test_each_island_asks_for_its_own_genes() -> None:
    player = apart(migrants=0)
    player.run(40, 2)
    assert all(genome.values[2:] == (0.5, 0.5) for genome in player.asked[::2])
    assert len({genome.values[2:] for genome in player.asked[1::2]}) > 10


def test_a_migrant_is_taken_in_where_it_can_be_found() -> None:
    player = apart()
    assert 0 in ids(player, 1)  # attention alone is found among everything: no evaluation is needed
    assert set(ids(player, 0)) == {0, 1, 2, 4}  # 1 is the start, which is found on both


def test_another_is_translated_and_evaluated_first() -> None:
    player = apart(migrants=2)  # 1 and 3 of everything; 1 is the start, which attention has too
    assert 1 in ids(player, 0)
    moved = player.asked[3]
    (proposal, *_) = player.ask(1)
    assert proposal.genome.values == (*moved.values[:2], 0.5, 0.5)
    assert proposal.parents == (3,)
    state = player.strategy.state_dict()
    player.tell(make=lambda c: scored(c.id, -1.0))  # better than all of them
    assert 8 in ids(player, 0)
    copied = Islands(SPEC, MAXIMISE, seed=5, strategies=[GA], islands=2, genes=[["attn/*"], None], every=8, migrants=2)
    copied.load_state_dict(unpack(pack(state)))
    copied.tell(Candidate(8, None, proposal.genome, proposal.parents), scored(8, -1.0))
    assert pack(copied.state_dict()) == pack(player.strategy.state_dict())


def test_nobody_travels_where_no_gene_is_shared() -> None:
    player = apart(genes=[["attn/*"], ["mlp/*"]], migrants=2)
    assert [len(arriving) for arriving in player.strategy._arriving] == [0, 0]
    assert set(ids(player, 0)) <= {0, 1, 2, 4, 6}  # the start alone is in both


def test_what_waits_to_arrive_is_saved() -> None:
    player = apart(migrants=2)
    other = Islands(SPEC, MAXIMISE, seed=9, strategies=[GA], islands=2, genes=[["attn/*"], None], every=8, migrants=2)
    other.load_state_dict(unpack(pack(player.strategy.state_dict())))
    assert other.ask(6) == player.strategy.ask(6)


def test_states_of_before_are_read() -> None:
    player = Player(Islands(CONTINUOUS, MAXIMISE, seed=0, strategies=[GA], islands=2, every=9), CONTINUOUS)
    player.ask(6)
    player.tell()
    state = player.strategy.state_dict()
    old = {name: value for name, value in state.items() if name not in ("since", "arriving")}
    other = Islands(CONTINUOUS, MAXIMISE, seed=1, strategies=[GA], islands=2, every=9)
    other.load_state_dict(old)
    assert other.ask(4) == player.strategy.ask(4)


def told(emigrants: Emigrants, *values: tuple[float, float], seed: int = 0) -> list[int]:
    """Tell scores and sizes; who leaves, by number."""
    rng = np.random.default_rng(seed)
    for number, (score, size) in enumerate(values):
        evaluation = Evaluation(number, "ok", objectives={"score": score, "size": size})
        emigrants.add((score, Candidate(number, None, SPEC.initial), evaluation), TWO, rng)
    return [candidate.id for _, candidate, _ in emigrants.leave(rng)]


def test_a_share_of_those_told_travels_but_no_more_than_there_may() -> None:
    scores = [(float(number), 0.0) for number in range(21)]
    emigrants = Emigrants("best", 5, 0.1)
    assert told(emigrants, *scores) == [20, 19, 18]  # 2.1, rounded up
    assert told(emigrants, *scores[:10]) == [9]
    assert told(emigrants) == []
    assert told(Emigrants("best", 2, 0.5), *scores) == [20, 19]
    assert told(Emigrants("best", 3, None), *scores) == [20, 19, 18]
    assert told(Emigrants("best", 0, None), *scores) == []


def test_the_front_travels() -> None:
    values = [(1.0, 1.0), (2.0, 2.0), (1.5, 3.0), (3.0, 9.0), (2.0, 2.0), (0.5, 0.5), (0.4, 0.6)]
    assert told(Emigrants("front", 9, None), *values) == [0, 1, 3, 4, 5]
    drawn = Counter(number for seed in range(50) for number in told(Emigrants("front", 2, None), *values, seed=seed))
    assert set(drawn) == {0, 1, 3, 4, 5}
    assert sum(drawn.values()) == 100


def test_of_random_ones_each_is_as_likely() -> None:
    values = [(float(number), 0.0) for number in range(10)]
    drawn = Counter(number for seed in range(500) for number in told(Emigrants("random", 2, None), *values, seed=seed))
    assert sum(drawn.values()) == 1000
    assert all(drawn[number] == pytest.approx(100, abs=35) for number in range(10))


def test_each_may_go_elsewhere() -> None:
    options = {"islands": 5, "every": 15, "migrants": 3, "topology": "scatter"}
    player = Player(Islands(CONTINUOUS, MAXIMISE, seed=0, strategies=[partial(GA, popsize=9)], **options), CONTINUOUS)
    player.ask(15)
    player.tell(make=lambda c: scored(c.id, float(c.id)))
    came = {island: [number for number in ids(player, island) if number % 5 != island] for island in range(5)}
    assert sorted(number for numbers in came.values() for number in numbers) == list(range(15))
    of_one = {number: island for island, numbers in came.items() for number in numbers if number % 5 == 0}
    assert len(set(of_one.values())) > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 1.5}, "strategy.share is 1.5"),
        ({"select": "worst"}, "strategy.select is 'worst'"),
        ({"topology": "scater"}, "strategy.topology is 'scater'; did you mean 'scatter'"),
        ({"genes": []}, "strategy.genes is empty"),
        ({"genes": [None, []]}, "strategy.genes.1 is empty"),
        ({"genes": [["atn/*"]]}, r"strategy.genes.0 has 'atn/\*', which no gene is called"),
        ({"genes": [["attn"]], "spec": LineageSpec(("a", "b"))}, "gene 'lineage' is lineage"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Islands(**{"spec": SPEC, "objectives": MAXIMISE, "seed": 0, "strategies": [GA], **given})

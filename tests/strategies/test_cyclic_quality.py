"""MAP-Elites with an archive for every objective, and noise along the elites' singular directions."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from contracts.strategy_contract import LearningContract, StrategyContract
from contracts.strategy_player import MAXIMISE, MIXED, Make, pack, unpack

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, FitnessError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.archives.cycle import niches
from evomerge.strategies.map_elites import MapElites
from evomerge.strategies.variation.singular import directions, singular_noise

PLANE = GenomeSpec((Gene("a", high=10), Gene("b", high=10)))
TASKS = (Objective("maths"), Objective("chat"), Objective("loss", "minimize"))
CYCLIC = partial(MapElites, PLANE, TASKS, seed=0, quality="cyclic", cells=2, ranges=[None, None, [0, 10]])


class TestSingularMapElites(LearningContract):
    # More cells than genes: noise stays in what the elites span.
    smallest: ClassVar = {"cells": 1, "initial": 0}

    @pytest.fixture
    def make(self) -> Make:
        return partial(MapElites, cells=20, initial=20, emitter="singular", sampling="quality", descriptors=["genes:*"])


class TestSingularMapElitesOfMixedGenes(StrategyContract):
    spec = MIXED
    smallest: ClassVar = {"cells": 1, "initial": 0}

    @pytest.fixture
    def make(self) -> Make:
        return partial(MapElites, archive="cvt", cells=20, emitter="singular", initial=6)


def told(strategy: MapElites, number: int, *values: float) -> None:
    (proposal,) = strategy.ask(1)
    scores = dict(zip(("maths", "chat", "loss"), values, strict=True))
    strategy.tell(
        Candidate(number, None, proposal.genome, proposal.parents), Evaluation(number, "ok", objectives=scores)
    )


def filled(strategy: MapElites, turn: int) -> dict[int, tuple[float, tuple[float, ...]]]:
    return {elite.candidate: (elite.gain, elite.descriptors) for elite in strategy.elites(turn)}


def test_every_candidate_is_offered_to_every_archive() -> None:
    strategy = CYCLIC()
    told(strategy, 0, 0.2, 0.9, 1.0)
    told(strategy, 1, 0.6, 0.8, 2.0)  # better at maths, in the same cell of chat and loss
    told(strategy, 2, 0.1, 0.1, 9.0)
    assert filled(strategy, 0) == {1: (0.6, (0.8, 2.0)), 2: (0.1, (0.1, 9.0))}
    assert filled(strategy, 1) == {0: (0.9, (0.2, 1.0)), 1: (0.8, (0.6, 2.0)), 2: (0.1, (0.1, 9.0))}
    assert filled(strategy, 2) == {0: (-1.0, (0.2, 0.9)), 1: (-2.0, (0.6, 0.8)), 2: (-9.0, (0.1, 0.1))}


def test_archives_take_turns_to_give_parents() -> None:
    strategy = CYCLIC(initial=2, emitter="gaussian")
    told(strategy, 0, 0.9, 0.1, 1.0)
    told(
        strategy, 1, 0.8, 0.2, 1.0
    )  # the first is the elite of maths; of chat, the second; of loss the first, told before
    parents = [proposal.parents for proposal in strategy.ask(6)]
    assert parents == [(0,), (1,), (0,), (0,), (1,), (0,)]


def test_it_goes_on_as_if_it_had_never_ended() -> None:
    strategy = CYCLIC(initial=3, emitter="singular", sampling="quality")
    rng = np.random.default_rng(0)
    for number in range(14):
        told(strategy, number, *rng.random(2), float(rng.random() * 10))
    copied = CYCLIC(initial=3, emitter="singular", sampling="quality")
    copied.load_state_dict(unpack(pack(strategy.state_dict())))
    assert copied.ask(7) == strategy.ask(7)


def test_what_lacks_an_objective_changes_nothing() -> None:
    strategy = CYCLIC()
    (proposal,) = strategy.ask(1)
    before = pack(strategy.state_dict())
    with pytest.raises(FitnessError, match=r"no (objective|descriptor) 'loss'"):
        strategy.tell(Candidate(0, None, proposal.genome), Evaluation(0, "ok", objectives={"maths": 1.0, "chat": 1.0}))
    assert pack(strategy.state_dict()) == before
    told(strategy, 1, 0.5, float("nan"), 1.0)
    assert [strategy.elites(turn) for turn in range(3)] == [[], [], []]


def test_parents_are_good_in_all_respects() -> None:
    maths, _, loss = niches(PLANE, TASKS, "cyclic", None, None, None)
    gains, places = np.array([0.0, 1.0, 0.5]), np.array([[0.2, 8.0], [0.6, 2.0], [0.4, 8.0]])
    # 0.5, 0.8, 0.65 by the gain and by chat; by the loss, of which less is better, 0.5, 0.8, 0.5.
    expected = np.array([0.5**3, 0.8**3, 0.65 * 0.65 * 0.5])
    np.testing.assert_allclose(maths.odds(gains, places), expected / expected.sum())
    np.testing.assert_allclose(loss.odds(gains * 0, places[:, [0, 0]] * 0), np.full(3, 1 / 3))
    (fixed,) = niches(PLANE, MAXIMISE, "fixed", None, ["genes:a"], None)
    np.testing.assert_allclose(fixed.odds(gains, places[:, :1]), np.array([0.5, 0.8, 0.65]) / 1.95)


def test_good_parents_are_drawn_more_often() -> None:
    strategy = MapElites(PLANE, TASKS[:2], seed=0, quality="cyclic", sampling="quality", emitter="gaussian", initial=2)
    for number, (maths, chat) in enumerate([(0.0, 0.0), (1.0, 1.0)]):
        (proposal,) = strategy.ask(1)
        scores = {"maths": maths, "chat": chat}
        strategy.tell(Candidate(number, None, proposal.genome), Evaluation(number, "ok", objectives=scores))
    drawn = [proposal.parents[0] for proposal in strategy.ask(600)]
    assert drawn.count(1) / 600 == pytest.approx(0.64 / 0.89, abs=0.05)


def test_directions_of_points_on_a_line() -> None:
    points = np.array([[0.0, 0.0], [0.3, 0.4], [0.6, 0.8]])
    axes, deviations = directions(points)
    np.testing.assert_allclose(axes[0], [0.6, 0.8])
    np.testing.assert_allclose(deviations, [0.5, 0.0], atol=1e-12)  # 0, 0.5 and 1 along it
    noise = np.array([singular_noise(points, 2.0, np.random.default_rng(seed)) for seed in range(300)])
    np.testing.assert_allclose(noise[:, 0] * 0.8, noise[:, 1] * 0.6, atol=1e-12)  # no other direction
    assert np.linalg.norm(noise, axis=1).std() < np.sqrt((noise**2).sum(axis=1).mean()) == pytest.approx(1.0, abs=0.1)
    assert not singular_noise(points[:1], 2.0, np.random.default_rng(0)).any()


def test_singular_children_stay_on_the_elites_line() -> None:
    strategy = MapElites(PLANE, MAXIMISE, seed=0, descriptors=["genes:a"], cells=10, emitter="singular", initial=0)
    strategy._proposed = 1
    for number, value in enumerate([1.0, 3.0, 5.0, 8.0]):
        told_of = Evaluation(number, "ok", objectives={"score": 0.5})
        strategy.inject(Candidate(number, None, PLANE.genome((value, value / 2 + 2))), told_of)
    for proposal in strategy.ask(30):
        a, b = proposal.genome.values
        assert b == pytest.approx(a / 2 + 2) or a in (0.0, 10.0) or b in (0.0, 10.0)
        assert len(proposal.parents) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quality": "cyclical"}, "strategy.quality is 'cyclical'"),
        ({"objectives": MAXIMISE}, "there is one objective, score; two or more; give tasks an objective each"),
        ({"objective": "maths"}, "strategy.objective is maths and strategy.quality is cyclic"),
        ({"descriptors": ["chat"]}, "leave strategy.descriptors out"),
        ({"ranges": [[0, 1]]}, "strategy.ranges has 1 entries; one for each of maths, chat, loss"),
        ({"sampling": "best"}, "strategy.sampling is 'best'"),
        ({"emitter": "singlar"}, "strategy.emitter is 'singlar'; did you mean 'singular'"),
        ({"cells": [5]}, "one number for each of 2 descriptors"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MapElites(**{"spec": PLANE, "objectives": TASKS, "seed": 0, "quality": "cyclic", **given})


def test_a_state_of_another_quality_is_refused() -> None:
    fixed, cyclic = MapElites(PLANE, TASKS, seed=0, cells=2, ranges=[None, [0, 10]]), CYCLIC()
    with pytest.raises(ConfigError, match="the saved MAP-Elites has cycle None"):
        cyclic.load_state_dict(fixed.state_dict())
    with pytest.raises(ConfigError, match="the saved MAP-Elites has 3 archives, this one has 1"):
        fixed.load_state_dict(cyclic.state_dict())

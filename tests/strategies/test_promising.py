"""The distribution that an evolution strategy begins with, after an earlier search."""

from __future__ import annotations

import statistics
from functools import partial

import numpy as np
import pytest
from cmaes import get_warm_start_mgd
from contracts.strategy_player import MAXIMISE, MIXED, Player, pack, sphere, unpack

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.strategies.bases.promising import ALPHA, promising
from evomerge.strategies.catcma import CatCma
from evomerge.strategies.cma_es import CmaEs

SIX = GenomeSpec(tuple(Gene(f"g{i}", low=-1.0, high=3.0) for i in range(6)))
BOTH = pytest.mark.parametrize("cls", [CmaEs, CatCma])


def earlier(spec: GenomeSpec, count: int, seed: int = 0) -> list[Genome]:
    """Random genomes, the best of the sphere first."""
    rng = np.random.default_rng(seed)
    return sorted((spec.sample(rng) for _ in range(count)), key=lambda genome: sphere(spec, genome))


def test_same_as_the_cmaes_package() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((73, 5))
    found = promising(points, np.empty((73, 0), dtype=np.int64), [], True)
    assert found is not None
    mean, sigma, covariance = get_warm_start_mgd([(point, float(rank)) for rank, point in enumerate(points)])
    assert found.mean == pytest.approx(mean)
    assert found.covariance == pytest.approx(sigma**2 * covariance)


def test_many_dimensions_do_not_underflow() -> None:
    found = promising(np.random.default_rng(0).random((50, 400)), np.empty((50, 0), dtype=np.int64), [], True)
    assert found is not None
    assert np.isfinite(found.covariance).all()
    assert np.linalg.eigvalsh(found.covariance).min() == pytest.approx(ALPHA**2)


def test_choices_are_fitted_by_their_frequencies() -> None:
    choices = np.array([[0], [0], [2], [0]] + 36 * [[1]])
    found = promising(np.zeros((40, 1)), choices, [3], "auto")
    assert found is not None
    # 3, 0 and 1 of the best four, and a third of one more each
    assert found.shares[0] == pytest.approx(np.array([10 / 3, 1 / 3, 4 / 3]) / 5)


def test_auto_wants_four_promising_ones() -> None:
    none = np.empty((39, 0), dtype=np.int64)
    points = np.random.default_rng(0).random((39, 2))
    assert promising(points, none, [], "auto") is None
    assert promising(points, none, [], False) is None
    assert promising(points[:2], none[:2], [], True) is not None
    assert promising(points[:0], none[:0], [], True) is None


@BOTH
def test_the_first_generation_is_that_distribution(cls: type) -> None:
    genomes = earlier(SIX, 200)
    strategy = cls(SIX, MAXIMISE, seed=0, popsize=4000, warm_start=True)
    strategy.begin_from(genomes)
    drawn = (np.array([proposal.genome.values for proposal in strategy.ask()]) + 1) / 4
    top = (np.array([genome.values for genome in genomes[:20]]) + 1) / 4
    inside = ((top.mean(axis=0) > 0.35) & (top.mean(axis=0) < 0.65)).nonzero()[0]  # bounds cut off the tails of others
    assert len(inside) >= 2
    assert drawn.mean(axis=0)[inside] == pytest.approx(top.mean(axis=0)[inside], abs=0.03)
    covariance = np.cov(top.T, bias=True) + ALPHA**2 * np.eye(6)
    pairs = np.ix_(inside, inside)
    assert np.cov(drawn.T)[pairs] == pytest.approx(covariance[pairs], abs=0.012)


@BOTH
def test_it_finds_the_optimum_with_fewer_evaluations(cls: type) -> None:
    def best(warm: bool, seed: int) -> float:
        strategy = cls(SIX, MAXIMISE, seed=seed, warm_start=warm)
        strategy.begin_from(earlier(SIX, 300, seed))
        player = Player(strategy, SIX)
        player.run(60)
        return player.best

    warm, cold = (statistics.median(best(given, seed) for seed in range(7)) for given in (True, False))
    assert warm < 0.5 * cold


@BOTH
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("spec", [SIX, MIXED], ids=["numbers", "mixed"])
def test_saved_and_loaded_it_goes_on_the_same(cls: type, asynchronous: bool, spec: GenomeSpec) -> None:
    player = Player(cls(spec, MAXIMISE, seed=4, popsize=8, warm_start="auto", asynchronous=asynchronous), spec)
    player.strategy.begin_from(earlier(spec, 60))
    cold = cls(spec, MAXIMISE, seed=4, popsize=8, asynchronous=asynchronous).ask(8)
    assert player.ask(8) != cold
    player.tell()
    player.run(60, 8)
    state = pack(player.strategy.state_dict())
    resumed = Player(cls(spec, MAXIMISE, seed=0, popsize=8, warm_start="auto", asynchronous=asynchronous), spec)
    resumed.strategy.load_state_dict(unpack(state))
    assert pack(resumed.strategy.state_dict()) == state
    begun = len(player.asked)
    assert resumed.run(40, 8) == player.run(begun + 40, 8)[begun:]


@BOTH
def test_nothing_earlier_and_no_wish_change_nothing(cls: type) -> None:
    runs = []
    for given, genomes in ((False, earlier(SIX, 100)), ("auto", earlier(SIX, 30)), (True, [])):
        strategy = cls(SIX, MAXIMISE, seed=1, warm_start=given)
        strategy.begin_from(genomes)
        runs.append(Player(strategy, SIX).run(40))
    assert runs[0] == runs[1] == runs[2] == Player(cls(SIX, MAXIMISE, seed=1), SIX).run(40)


def test_separable_takes_the_deviations() -> None:
    genomes = earlier(SIX, 200)
    strategy = CmaEs(SIX, MAXIMISE, seed=0, popsize=2000, separable=True, warm_start=True)
    strategy.begin_from(genomes)
    top = (np.array([genome.values for genome in genomes[:20]]) + 1) / 4
    deviations = np.sqrt(top.var(axis=0) + ALPHA**2)
    assert strategy._cma.sigma * strategy._cma.sigma_vec.scaling == pytest.approx(deviations, rel=1e-3)


@BOTH
def test_other_words_are_refused(cls: type) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.warm_start is 'yes'"):
        cls(SIX, MAXIMISE, seed=0, warm_start="yes")


def test_restarts_forget_it() -> None:
    spec = GenomeSpec((Gene("a"), Gene("b")))
    strategy = partial(CmaEs, restarts="ipop", popsize=4)(spec, MAXIMISE, seed=0, warm_start=True)
    strategy.begin_from(earlier(spec, 100))
    player = Player(strategy, spec, lambda s, g: 0.5)
    begun = np.array(strategy._cma.mean)
    while strategy.popsize == 4:
        player.run(len(player.asked) + 4)
    assert np.abs(np.array(strategy._cma.mean) - begun).max() > 0.05

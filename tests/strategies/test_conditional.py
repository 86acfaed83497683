"""Genes that do not act: the distribution stays where it is, and a search needs fewer evaluations."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from contracts.strategy_player import MAXIMISE, Player, pack, unpack

from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.objectives import Scalarisation
from evomerge.strategies.bases.conditional import Conditional, acting
from evomerge.strategies.bases.scalarised import SCALAR, Scalarised
from evomerge.strategies.catcma import CatCma
from evomerge.strategies.cma_es import CmaEs
from evomerge.strategies.islands import Islands

SLOTS = 10
WANTED = np.array([slot % 3 != 0 for slot in range(SLOTS)])
BEST = 1 + 0.2 * np.array([1, -1, -1, 1, 1, -1, 1, 1, -1, -1])
Score = Callable[[GenomeSpec, Genome], float]


def path(relaxed: bool) -> GenomeSpec:
    """Slots that are taken or not, and a scale of each."""
    takes = [
        Gene(f"{slot}", "continuous", -1.0, 1.0, -0.5 if slot % 2 else 0.5)
        if relaxed
        else Gene(f"{slot}", "boolean", initial=slot % 2 == 0)
        for slot in range(SLOTS)
    ]
    return GenomeSpec((*takes, *(Gene(f"{slot}/scale", low=0.5, high=1.5, spread=0.05) for slot in range(SLOTS))))


def taken(genome: Genome) -> np.ndarray:
    return np.array([float(value) > 0 for value in genome.values[:SLOTS]])


def active(genome: Genome) -> set[str]:
    return {f"{slot}" for slot in range(SLOTS)} | {f"{slot}/scale" for slot in np.flatnonzero(taken(genome))}


def loss_of(wanted: np.ndarray, best: np.ndarray) -> Score:
    """Wrong slots, and how far the scales of those taken are from the best."""

    def loss(spec: GenomeSpec, genome: Genome) -> float:
        takes, scales = taken(genome), np.array(genome.values[SLOTS:], dtype=float)
        return float(0.3 * np.sum(takes != wanted) + 10 * np.sum((scales - best)[takes] ** 2)) / SLOTS

    return loss


loss = loss_of(WANTED, BEST)


def evaluations(make: Callable[..., CatCma | CmaEs], spec: GenomeSpec, function: Score, seed: int, most: int) -> int:
    """Until the loss is below 0.01."""
    strategy = make(spec, MAXIMISE, seed=seed)
    strategy.know_active(active)
    player = Player(strategy, spec, function)
    while len(player.asked) < most and player.best >= 0.01:
        player.ask()
        player.tell()
    return len(player.asked)


@pytest.mark.parametrize(("cls", "relaxed"), [(CatCma, False), (CmaEs, True)])
def test_fewer_evaluations_where_scales_of_slots_left_out_are_not_learnt_from(cls: type, relaxed: bool) -> None:
    """Medians over four functions with two seeds each; the first 600 evaluations."""
    spec, medians = path(relaxed), []
    for conditional in (True, False):
        found = []
        for pattern in range(4):
            rng = np.random.default_rng(pattern)
            best, wanted = 1 + 0.2 * rng.choice([-1, 1], SLOTS), rng.random(SLOTS) < 0.6
            make, function = partial(cls, conditional=conditional), loss_of(wanted, best)
            found += [evaluations(make, spec, function, seed, 600) for seed in range(2)]
        medians.append(statistics.median(found))
    assert medians[0] < 0.75 * medians[1]


@pytest.mark.parametrize(("cls", "relaxed"), [(CatCma, False), (CmaEs, True)])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_mean_of_a_gene_that_never_acts_stays(cls: type, relaxed: bool, asynchronous: bool) -> None:
    spec = path(relaxed)
    strategy = cls(spec, MAXIMISE, seed=1, conditional=True, asynchronous=asynchronous)
    strategy.know_active(lambda genome: active(genome) - {"3/scale"})
    player = Player(strategy, spec, loss)
    place = spec.genes.index(next(gene for gene in spec if gene.name == "3/scale"))
    place = place if relaxed else place - SLOTS

    def mean() -> np.ndarray:
        return np.array(strategy._cma.mean if cls is CmaEs else strategy._model._mean)

    begun = mean()
    player.run(200)
    assert mean()[place] == pytest.approx(begun[place], abs=1e-12)
    assert np.abs(np.delete(mean() - begun, place)).max() > 0.01


def test_the_step_is_that_of_the_candidates_in_which_a_gene_acts() -> None:
    """CMA-ES's mean: the weighted steps of the best half, without those in which a gene does not act."""
    spec = path(relaxed=True)
    strategy = CmaEs(spec, MAXIMISE, seed=0, popsize=6, conditional=True)
    strategy.know_active(active)
    player = Player(strategy, spec, loss)
    player.ask()
    losses = [loss(spec, candidate.genome) for candidate in player.flight]
    points = np.array([candidate.genome.values for candidate in player.flight])
    unit = np.hstack([(points[:, :SLOTS] + 1) / 2, points[:, SLOTS:] - 0.5])
    before = np.array(strategy._cma.mean)
    player.tell()
    weights = np.log(7 / 2) - np.log(np.arange(1, 4))
    expected = before.copy()
    for weight, row in zip(weights / weights.sum(), np.argsort(losses)[:3], strict=True):
        acts = np.append(np.ones(SLOTS, dtype=bool), points[row, :SLOTS] > 0)
        expected += weight * acts * (unit[row] - before)
    # The bound transform moves points near an edge alone; scales are far from theirs.
    assert np.array(strategy._cma.mean)[SLOTS:] == pytest.approx(expected[SLOTS:], abs=1e-9)


def test_choices_that_do_not_act_keep_their_probabilities() -> None:
    genes = (Gene("on", "boolean", initial=True), Gene("kind", "categorical", choices=tuple("abc")), Gene("w"))
    spec = GenomeSpec(genes)
    for cls in (CatCma, CmaEs):
        strategy = cls(spec, MAXIMISE, seed=0, popsize=6, conditional=True)
        strategy.know_active(lambda genome: {"on", "w"})
        player = Player(strategy, spec, lambda s, genome: float(genome.values[1] != "b"))
        player.run(60)
        shares = strategy._model._q[1] if cls is CatCma else strategy._categorical.probabilities[1]
        assert shares == pytest.approx([1 / 3] * 3, abs=1e-9)
        strategy = cls(spec, MAXIMISE, seed=0, popsize=6, conditional=True)
        strategy.know_active(lambda genome: set())
        player = Player(strategy, spec, lambda s, genome: float(genome.values[1] != "b"))
        player.run(60)  # nothing acts, and nothing breaks
        assert np.isfinite(player.ask()[0].genome.values[2])


@pytest.mark.parametrize("cls", [CatCma, CmaEs])
def test_saved_and_loaded_it_goes_on_the_same(cls: type) -> None:
    spec = path(relaxed=cls is CmaEs)
    player = Player(cls(spec, MAXIMISE, seed=4, conditional=True), spec, loss)
    player.strategy.know_active(active)
    player.run(150)
    state = pack(player.strategy.state_dict())
    resumed = Player(cls(spec, MAXIMISE, seed=0, conditional=True), spec, loss)
    resumed.strategy.know_active(active)
    resumed.strategy.load_state_dict(unpack(state))
    begun = len(player.asked)
    assert resumed.run(60) == player.run(begun + 60)[begun:]
    plain = cls(spec, MAXIMISE, seed=0)
    with pytest.raises(Exception, match="conditional"):
        plain.load_state_dict(unpack(state))


def test_nothing_changes_where_all_genes_act_or_nobody_asks() -> None:
    spec = path(relaxed=False)
    names = {gene.name for gene in spec}
    runs = []
    for conditional, acts in ((False, None), (False, active), (True, None), (True, lambda genome: names)):
        player = Player(CatCma(spec, MAXIMISE, seed=2, conditional=conditional), spec, loss)
        if acts is not None:
            player.strategy.know_active(acts)
        runs.append(player.run(100))
    assert runs[0] == runs[1] == runs[2] == runs[3]


def test_wrappers_pass_it_on() -> None:
    spec = path(relaxed=False)
    inner = CatCma(spec, (SCALAR,), seed=0, conditional=True)
    wrapped = Scalarised(inner, Scalarisation.of(MAXIMISE, "weighted", {}, []))
    islands = Islands(spec, MAXIMISE, seed=0, strategies=[partial(CatCma, conditional=True)], islands=2)
    for strategy in (wrapped, islands):
        assert isinstance(strategy, Conditional)
        strategy.know_active(active)
    assert inner._active is active
    assert all(island._active is active for island in islands._islands)


def test_which_genes_act() -> None:
    spec = path(relaxed=False)
    genome = spec.genome([slot == 2 for slot in range(SLOTS)] + [1.0] * SLOTS)
    found = acting(active, [genome], ["1", "1/scale", "2/scale"])
    assert found.tolist() == [[True, False, True]]

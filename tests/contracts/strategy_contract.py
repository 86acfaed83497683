"""What every strategy must do. A strategy's tests subclass this and supply the fixture `make`."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import numpy as np
import pytest
from contracts.misuse_contract import MisuseContract
from contracts.other_process import elsewhere
from contracts.strategy_player import (
    MAXIMISE,
    MINIMISE,
    Make,
    Player,
    continue_from,
    outcome,
    pack,
    play,
    sphere,
    unpack,
)

from evomerge.candidate import Candidate, Evaluation
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.genomes.lineages import LineageGenome, LineageSpec
from evomerge.objectives import Objective
from evomerge.strategies.bases.capabilities import Injectable
from evomerge.strategies.random_search import RandomSearch


class StrategyContract(MisuseContract):
    """Supply the fixture `make`: a picklable ``make(spec, objectives, *, seed)`` (a class, or a partial of one)."""

    def test_the_seed_decides(self, make: Make) -> None:
        first = play(make, 1, 60, self.spec)
        assert first == play(make, 1, 60, self.spec)
        assert first != play(make, 2, 60, self.spec)
        assert len(set(first)) > 10

    def test_another_process_proposes_the_same(self, make: Make) -> None:
        assert elsewhere(play, make, 5, 50, self.spec) == play(make, 5, 50, self.spec)

    @pytest.mark.parametrize(("rounds", "asked", "told"), [(0, 0, 0), (0, 3, 1), (2, 0, 0), (3, 3, 3), (4, 3, 2)])
    def test_saved_and_loaded_it_goes_on_the_same(self, make: Make, rounds: int, asked: int, told: int) -> None:
        player = Player(make(self.spec, MAXIMISE, seed=11), self.spec)
        for _ in range(rounds):
            player.ask()
            player.tell()
        for _ in range(asked):
            player.ask(1)
        player.tell(min(told, len(player.flight)))
        state = pack(player.strategy.state_dict())
        copied = copy.copy(player)
        copied.flight, copied.asked = list(player.flight), list(player.asked)
        copied.strategy = make(self.spec, MAXIMISE, seed=999)
        copied.strategy.load_state_dict(unpack(state))
        assert pack(copied.strategy.state_dict()) == state
        player.tell()
        copied.tell()
        assert copied.run(80, 4) == player.run(80, 4)

    def test_saved_here_and_loaded_in_another_process(self, make: Make, player: Player) -> None:
        player.run(24)
        state = pack(player.strategy.state_dict())
        here = continue_from(make, state, 40, self.spec)
        assert elsewhere(continue_from, make, state, 40, self.spec) == here

    def test_a_saved_state_is_not_changed_by_going_on(self, player: Player) -> None:
        player.run(20)
        state = player.strategy.state_dict()
        before = pack(state)
        player.run(60)
        assert pack(state) == before

    def test_loading_leaves_the_state_alone(self, make: Make, player: Player) -> None:
        player.run(20)
        state = player.strategy.state_dict()
        before = pack(state)
        other = Player(make(self.spec, MAXIMISE, seed=0), self.spec)
        other.strategy.load_state_dict(state)
        other.run(40)
        assert pack(state) == before

    def test_failed_and_nan_evaluations_survive(self, player: Player) -> None:
        kinds = [
            lambda i: Evaluation(i, "failed", error="out of memory"),
            lambda i: Evaluation(i, "infeasible", error="weights sum to zero"),
            lambda i: Evaluation(i, "pruned", error="hopeless"),
            lambda i: outcome(i, float("nan")),
            lambda i: outcome(i, float("inf")),
            lambda i: outcome(i, float("-inf")),
            lambda i: outcome(i, 1e308),
            lambda i: outcome(i, 0.5),
        ]
        rng = np.random.default_rng(0)
        while len(player.asked) < 120:
            player.ask()
            player.tell(make=lambda c: kinds[int(rng.integers(len(kinds)))](c.id))
        for genome in player.asked:
            self.spec.check(genome)

    def test_nothing_but_failures(self, player: Player) -> None:
        for _ in range(12):
            player.ask()
            player.tell(make=lambda c: Evaluation(c.id, "failed", error="it broke"))
        assert len(set(player.asked)) > len(player.asked) // 2

    def test_all_scores_equal(self, player: Player) -> None:
        player.score = lambda spec, genome: 0.25
        player.run(150)
        for genome in player.asked:
            self.spec.check(genome)

    def test_genomes_stay_within_bounds_and_on_their_grids(self, player: Player) -> None:
        for genome in player.run(150):
            self.spec.check(genome)
            if not isinstance(genome, LineageGenome):  # a child is more than its values
                assert self.spec.genome(genome.values) == genome

    def test_inputs_are_not_changed(self, make: Make) -> None:
        spec, objectives = copy.deepcopy(self.spec), copy.deepcopy(MAXIMISE)
        strategy = make(spec, objectives, seed=0)
        for proposal in list(strategy.ask()):
            candidate = Candidate(0, None, proposal.genome)
            evaluation = outcome(0, sphere(spec, proposal.genome))
            before = copy.deepcopy(evaluation)
            strategy.tell(candidate, evaluation)
            assert evaluation.objectives == before.objectives
            assert np.array_equal(evaluation.items["toy/acc"], before.items["toy/acc"])
        assert spec == self.spec
        assert objectives == MAXIMISE

    def test_global_random_state_is_not_touched(self, make: Make) -> None:
        np.random.seed(7)  # noqa: NPY002  # the global state is what is tested
        random.seed(7)
        before = (pack({"state": np.random.get_state()[1]}), random.getstate())  # noqa: NPY002
        play(make, 0, 60, self.spec)
        assert (pack({"state": np.random.get_state()[1]}), random.getstate()) == before  # noqa: NPY002
        np.random.seed(8)  # noqa: NPY002
        assert play(make, 0, 60, self.spec) == play(make, 0, 60, self.spec)

    def test_asks_for_no_more_than_wanted(self, player: Player) -> None:
        assert len(player.ask(0)) == 0
        assert len(player.ask(1)) == 1
        assert len(player.ask(2)) <= 2
        assert player.ask(None) or player.flight

    def test_told_in_any_order(self, make: Make) -> None:
        player = Player(make(self.spec, MAXIMISE, seed=0), self.spec)
        rng = np.random.default_rng(1)
        while len(player.asked) < 80:
            player.ask()
            player.flight = [player.flight[i] for i in rng.permutation(len(player.flight))]
            player.tell()
        for genome in player.asked:
            self.spec.check(genome)

    def test_baselines_and_repeats_are_harmless(self, make: Make) -> None:
        plain, disturbed = (Player(make(self.spec, MAXIMISE, seed=4), self.spec) for _ in range(2))
        disturbed.strategy.tell(Candidate(0, None, None, name="base"), outcome(0, 0.0))
        foreign = Candidate(90, None, self.spec.sample(np.random.default_rng(99)))
        disturbed.strategy.tell(foreign, outcome(90, 0.0))
        for _ in range(5):
            plain.ask(6)
            disturbed.ask(6)
            for candidate in list(disturbed.flight):
                disturbed.tell(1)
                disturbed.strategy.tell(candidate, outcome(candidate.id, -1.0))
            plain.tell()
        assert disturbed.asked == plain.asked

    def test_what_was_injected_is_not_asked_for_again(self, make: Make) -> None:
        strategy, rng = make(self.spec, MAXIMISE, seed=4), np.random.default_rng(5)
        if not isinstance(strategy, Injectable):
            pytest.skip("takes nothing in")
        seeds = [self.spec.seed(name) for name in self.spec.seeds] if isinstance(self.spec, LineageSpec) else []
        given = [self.spec.initial, *seeds, *(self.spec.sample(rng) for _ in range(20))]
        for number, genome in enumerate(given, start=100):
            told = Evaluation(number, "failed") if number % 5 == 1 else outcome(number, sphere(self.spec, genome))
            strategy.inject(Candidate(number, None, genome), told)
        player, copied = (Player(s, self.spec) for s in (strategy, make(self.spec, MAXIMISE, seed=9)))
        copied.strategy.load_state_dict(unpack(pack(strategy.state_dict())))
        assert player.run(20, 3) == copied.run(20, 3)
        assert not set(player.asked) & set(given)

    def test_one_gene(self, make: Make) -> None:
        spec = GenomeSpec((Gene("model/t"),))
        genomes = play(make, 0, 60, spec)
        assert len({genome.values for genome in genomes}) > 30


class LearningContract(StrategyContract):
    """For strategies that learn from scores."""

    @pytest.mark.parametrize("objectives", [MAXIMISE, MINIMISE], ids=["maximise", "minimise"])
    def test_better_than_random_on_a_sphere(self, make: Make, objectives: Sequence[Objective]) -> None:
        spec = GenomeSpec(tuple(Gene(f"g{i}", low=-1.0, high=3.0) for i in range(6)))

        def regret(kind: Make) -> float:
            """Mean of log10 of the best value after 200 evaluations, over 12 seeds."""
            best = []
            for seed in range(12):
                player = Player(kind(spec, objectives, seed=seed), spec, objectives=objectives)
                player.run(200)
                best.append(np.log10(player.best))
            return float(np.mean(best))

        # Seeds are fixed, so this cannot flake; the margin is a factor of two on the geometric mean.
        assert regret(make) < regret(RandomSearch) - np.log10(2)

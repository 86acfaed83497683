"""What every strategy does when it is told too little, too much, or nothing that it could learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
from contracts.strategy_player import CONTINUOUS, MAXIMISE, Make, Player, outcome, pack, sphere, unpack

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import FitnessError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec

Told = Callable[[int], Evaluation]

USELESS: Mapping[str, Told] = {
    "failed": lambda i: Evaluation(i, "failed", error="out of memory"),
    "infeasible": lambda i: Evaluation(i, "infeasible", error="weights sum to zero"),
    "pruned": lambda i: Evaluation(i, "pruned", error="hopeless", items={"toy/acc": np.zeros(3)}),
    "nan": lambda i: outcome(i, float("nan")),
    "inf": lambda i: outcome(i, float("inf")),
    "-inf": lambda i: outcome(i, float("-inf")),
    "nan and no items": lambda i: Evaluation(i, "ok", objectives={"score": float("nan")}),
}
"""Evaluations from which nothing can be learnt, and all of which are learnt from alike."""


class MisuseContract:
    """Supply the fixture `make`; strategies that hold anything also say how to make the smallest one.

    Attributes:
        spec: the genes.
        smallest: options of the smallest population or archive that there can be.
        rounds: how many batches are played where a few will do.
    """

    spec: ClassVar[GenomeSpec] = CONTINUOUS
    smallest: ClassVar[Mapping[str, Any]] = {}
    rounds: ClassVar[int] = 3

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError("supply a fixture `make`")

    @pytest.fixture
    def player(self, make: Make) -> Player:
        return Player(make(self.spec, MAXIMISE, seed=3), self.spec)

    def started(self, make: Make) -> Player:
        """One that has learnt something and waits for some candidates."""
        player = Player(make(self.spec, MAXIMISE, seed=3), self.spec)
        player.ask(5)
        player.tell(3)
        return player

    def after(self, player: Player) -> list[Genome]:
        """What it asks from here on when it is told all that it waits for."""
        count = len(player.asked)
        player.tell()
        player.ask(4)
        player.tell()
        player.ask(4)
        return player.asked[count:]

    def test_what_it_did_not_propose_changes_nothing(self, make: Make) -> None:
        foreign = [
            None,  # a baseline
            self.spec.sample(np.random.default_rng(99)),
            GenomeSpec((Gene("of/another/space"),)).initial,
        ]
        for strategy in (make(self.spec, MAXIMISE, seed=3), self.started(make).strategy):
            before = pack(strategy.state_dict())
            for number, genome in enumerate(foreign, start=50):
                for told in (outcome(number, -1.0), *(useless(number) for useless in USELESS.values())):
                    strategy.tell(Candidate(number, None, genome, name="other"), told)
            assert pack(strategy.state_dict()) == before

    def test_what_was_told_before_changes_nothing(self, make: Make) -> None:
        player = self.started(make)
        candidates = list(player.flight)
        player.tell()
        before = pack(player.strategy.state_dict())
        for candidate in candidates:
            for told in (outcome(candidate.id, -1.0), USELESS["failed"](candidate.id)):
                player.strategy.tell(candidate, told)
        assert pack(player.strategy.state_dict()) == before

    def test_a_missing_objective_is_named_and_the_candidate_stays_in_flight(self, make: Make) -> None:
        player, plain = self.started(make), self.started(make)
        before = pack(player.strategy.state_dict())
        for candidate in player.flight:
            for objectives in ({}, {"other": 1.0}):
                told = Evaluation(candidate.id, "ok", objectives=objectives, items={"toy/acc": np.ones(8)})
                try:
                    player.strategy.tell(candidate, told)
                except FitnessError as error:
                    assert f"candidate {candidate.id} has no objective 'score'" in str(error)  # noqa: PT017
                    assert pack(player.strategy.state_dict()) == before
        assert self.after(player) == self.after(plain)

    def test_missing_items_are_named_or_not_needed(self, make: Make) -> None:
        player, plain = self.started(make), self.started(make)
        before = pack(player.strategy.state_dict())
        refused = 0
        for candidate in player.flight:
            for items in ({}, {"toy/acc": np.ones(5)}, {"other/acc": np.ones(8)}):
                value = sphere(self.spec, candidate.genome)
                told = Evaluation(candidate.id, "ok", objectives={"score": -value}, items=items)
                try:
                    player.strategy.tell(candidate, told)
                except FitnessError as error:
                    refused += 1
                    assert "items of 'toy/acc'" in str(error)  # noqa: PT017
                    assert pack(player.strategy.state_dict()) == before
                else:
                    break
        assert refused in (0, 3 * len(player.flight))
        assert self.after(player) == self.after(plain)

    def test_items_that_are_no_numbers_survive(self, player: Player) -> None:
        odd = np.array([np.nan, np.inf, -np.inf, 1e308, -1e308, 0.0, 1.0, 0.5])
        for _ in range(self.rounds):
            player.ask()
            player.tell(make=lambda c: Evaluation(c.id, "ok", objectives={"score": 0.5}, items={"toy/acc": odd}))
        for genome in player.asked:
            self.spec.check(genome)

    def test_nothing_but_what_teaches_nothing(self, make: Make) -> None:
        asked = {}
        for name, useless in USELESS.items():
            player = Player(make(self.spec, MAXIMISE, seed=3), self.spec)
            for _ in range(self.rounds):
                player.ask()
                player.tell(make=lambda c, useless=useless: useless(c.id))
            asked[name] = list(player.asked)
            count = len(set(asked[name]))
            assert count > 0.7 * len(asked[name])
            player.ask()  # and from then on it learns
            player.tell()
            player.ask(3)
            self.spec.check(player.asked[-1])
        assert all(genomes == asked["failed"] for genomes in asked.values())

    def test_equal_scores_lead_on(self, player: Player) -> None:
        for _ in range(self.rounds):
            player.ask()
            player.tell(make=lambda c: outcome(c.id, 0.25))
        assert len(set(player.asked)) > 0.5 * len(player.asked)

    def test_the_smallest_there_can_be(self, make: Make) -> None:
        smallest = partial(make, **self.smallest)
        player = Player(smallest(self.spec, MAXIMISE, seed=3), self.spec)
        kinds: list[Told] = [*USELESS.values(), lambda i: outcome(i, 0.3), lambda i: outcome(i, 0.2)]
        for number in range(6 * self.rounds):
            player.ask(2)
            player.tell(make=lambda c, number=number: kinds[(c.id + number) % len(kinds)](c.id))
        for genome in player.asked:
            self.spec.check(genome)
        state = pack(player.strategy.state_dict())
        copied = Player(smallest(self.spec, MAXIMISE, seed=0), self.spec)
        copied.strategy.load_state_dict(unpack(state))
        assert self.after(copied) == self.after(player)

    def test_nothing_is_asked_for(self, make: Make) -> None:
        player = self.started(make)
        before = pack(player.strategy.state_dict())
        assert list(player.strategy.ask(0)) == []
        assert pack(player.strategy.state_dict()) == before

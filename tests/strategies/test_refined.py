"""A strategy, and after it a Gaussian process over all that was told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Estimate
from evomerge.strategies.bases.refined import Refined
from evomerge.strategies.cma_es import CmaEs

SCORE, LOSS = Objective("score"), Objective("loss", "minimize")
SPEC = GenomeSpec((Gene("a", low=-1.0), Gene("fixed", low=0.5, high=0.5), Gene("b", high=3.0)))
BEST = np.array([0.4, 0.5, 2.1])


def value(genome: Any) -> float:
    """Best at `BEST`, 1 there."""
    return 1.0 - float(np.square(np.array(genome.values) - BEST).sum())


class Player:
    """Asks and tells; candidates are numbered as they come."""

    def __init__(self, strategy: Refined, objective: Objective = SCORE, sign: float = 1.0) -> None:
        self.strategy, self.objective, self.sign, self.next = strategy, objective, sign, 0

    def ask(self, n: int | None = None) -> list[Candidate]:
        found = []
        for proposal in self.strategy.ask(n):
            found.append(Candidate(self.next, None, proposal.genome))
            self.next += 1
        return found

    def tell(self, candidates: Sequence[Candidate], error: float = 0.0, fails: Sequence[int] = ()) -> None:
        for candidate in candidates:
            scores = {self.objective.name: self.sign * value(candidate.genome)}
            race = {f"error/{self.objective.name}": error}
            evaluation = Evaluation(candidate.id, "ok", objectives=scores, race=race)
            failed = Evaluation(candidate.id, "failed", error="it broke")
            self.strategy.tell(candidate, failed if candidate.id in fails else evaluation)


def refined(objective: Objective = SCORE, after: int = 12, batch: int = 4) -> Refined:
    return Refined(CmaEs(SPEC, (objective,), seed=1, popsize=6), SPEC, objective, seed=1, after=after, batch=batch)


def test_the_strategys_own_come_first_to_the_end_of_a_generation() -> None:
    player, alone = Player(refined(after=7)), CmaEs(SPEC, (SCORE,), seed=1, popsize=6)
    for _ in range(2):
        candidates = player.ask()
        assert [c.genome for c in candidates] == [p.genome for p in alone.ask()]
        assert not any(player.strategy.at_once(candidate) for candidate in candidates)
        for candidate in candidates:
            alone.tell(candidate, Evaluation(candidate.id, "ok", objectives={"score": value(candidate.genome)}))
        player.tell(candidates)
        assert player.strategy.favourite() == alone.favourite()  # until it has proposed something of its own
        assert player.strategy.expected(0) is None
    round_ = player.ask()
    assert len(round_) == 4
    assert all(player.strategy.at_once(candidate) for candidate in round_)
    assert len({candidate.genome for candidate in round_}) == 4


@pytest.mark.parametrize(("objective", "sign"), [(SCORE, 1.0), (LOSS, -1.0)])
def test_it_finds_the_best_of_a_smooth_function(objective: Objective, sign: float) -> None:
    player = Player(refined(objective), objective, sign)
    for _ in range(6):
        player.tell(player.ask())
    favourite: Any = player.strategy.favourite()
    np.testing.assert_allclose(favourite.values, BEST, atol=0.02)
    assert favourite.values[1] == 0.5
    expected = player.strategy.expected(3)
    told = player.strategy._objective.gain(player.strategy._told[3][0])
    assert expected == pytest.approx(told, abs=0.01)
    assert player.strategy.expected(999) is None


def test_what_fails_is_the_worst_there_is() -> None:
    player = Player(refined())
    for _ in range(2):
        player.tell(player.ask())
    round_ = player.ask()
    player.tell(round_, fails=[candidate.id for candidate in round_])
    strategy = player.strategy
    strategy.favourite()
    fitted = strategy._fitted
    assert fitted is not None
    worst = min(gain for gain, _ in strategy._told[:12])
    assert strategy.expected(round_[0].id) < strategy.expected(0)  # type: ignore[operator]
    np.testing.assert_allclose(fitted.mean, np.mean([g for g, _ in strategy._told[:12]] + 4 * [worst]))


def test_estimates_are_those_of_now() -> None:
    """It is told that what scored well does not, and proposes what lies elsewhere."""
    player, elsewhere = Player(refined()), np.array([-0.8, 0.5, 0.5])
    genomes: list[Any] = []

    def revised(numbers: Sequence[int]) -> list[Estimate | None]:
        assert list(numbers) == list(range(len(genomes)))
        return [Estimate(-float(np.square(np.array(genome.values) - elsewhere).sum()), 0.01) for genome in genomes]

    player.strategy.know_estimates(revised)
    for _ in range(2):
        candidates = player.ask()
        genomes += [candidate.genome for candidate in candidates]
        player.tell(candidates, error=0.3)
    likely: Any = player.ask()[1].genome
    assert np.abs(np.array(likely.values) - elsewhere).max() < np.abs(np.array(likely.values) - BEST).max()


def test_of_which_nothing_new_is_known_keeps_what_it_was_told_with() -> None:
    player = Player(refined())
    player.strategy.know_estimates(lambda numbers: [Estimate(0.7, 0.1) if n == 8 else None for n in numbers])
    for _ in range(2):
        player.tell(player.ask())
    told = [gain for gain, _ in player.strategy._told]
    player.ask()
    assert player.strategy._fitted is not None
    np.testing.assert_allclose(player.strategy._fitted.mean, np.mean([*told[:8], 0.7, *told[9:]]))


@pytest.mark.parametrize("told", [0, 9, 12, 14, 17])
def test_a_saved_state_goes_on_to_the_same_bits(told: int) -> None:
    """In portions of three, from any place: while the strategy asks, within a round, and between two."""
    player = Player(refined())
    waiting: list[Candidate] = []
    while player.next < 30:
        waiting += player.ask(3)
        if player.next >= told + len(waiting) and player.next - len(waiting) >= told:
            break
        player.tell(waiting[:2])
        del waiting[:2]
    state = player.strategy.state_dict()
    again = Player(refined())
    again.strategy.load_state_dict(state)
    again.next = player.next
    for one in (player, again):
        one.tell(waiting)
    for _ in range(5):
        ours, theirs = player.ask(3), again.ask(3)
        assert [c.genome for c in ours] == [c.genome for c in theirs]
        assert ours
        player.tell(ours)
        again.tell(theirs)
    assert player.strategy.favourite() == again.strategy.favourite()
    with pytest.raises(ConfigError, match="after 12, this one has 13"):
        refined(after=13).load_state_dict(state)


def test_what_nobody_proposed() -> None:
    player = Player(refined())
    stranger = Candidate(77, None, SPEC.genome([0.0, 0.5, 1.0]))
    player.strategy.tell(stranger, Evaluation(77, "ok", objectives={"score": 5.0}))
    assert player.strategy._numbers == []
    player.strategy.inject(stranger, Evaluation(77, "ok", objectives={"score": 5.0}))
    assert player.strategy._numbers == [77]


def test_what_fell_on_a_cheap_rung_was_not_scored() -> None:
    player = Player(refined())
    first, *_ = player.ask()
    guess = Evaluation(first.id, "ok", objectives={"score": 0.9}, race={"items": 0.0, "of": 40.0, "cheap": 0.3})
    player.strategy.tell(first, guess)
    assert player.strategy._numbers == []


def test_refused() -> None:
    words = GenomeSpec((Gene("a"), Gene("word", "categorical", choices=("x", "y"))))
    inner = CmaEs(words, (SCORE,), seed=0)
    with pytest.raises(ConfigError, match=r"search.refine.after is set, and gene 'word' is categorical"):
        Refined(inner, words, SCORE, seed=0, after=10)
    with pytest.raises(ConfigError, match=r"search.refine.after is 0; a whole number of candidates, at least 1"):
        refined(after=0)
    with pytest.raises(ConfigError, match=r"search.refine.batch is 0"):
        refined(batch=0)

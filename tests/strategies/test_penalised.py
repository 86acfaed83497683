from __future__ import annotations

import pytest

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.bases.penalised import Penalised, check_penalty, check_single, mean_magnitude, with_penalty
from evomerge.strategies.cma_es import CmaEs
from evomerge.strategies.m2n2 import M2N2

SCORE, LOSS = Objective("score", "maximize"), Objective("loss", "minimize")
SPEC = GenomeSpec((Gene("a", low=-1.5, high=1.5), Gene("word", "categorical", choices=("x", "y")), Gene("b")))


def test_the_mean_is_of_numbers_alone() -> None:
    assert mean_magnitude(Genome((-1.5, "x", 0.5)), SPEC) == 1.0


@pytest.mark.parametrize(("objective", "shown"), [(SCORE, 0.7 - 0.05), (LOSS, 0.7 + 0.05)])
def test_a_strategy_is_told_less_and_the_ledger_both(objective: Objective, shown: float) -> None:
    strategy = Penalised(CmaEs(SPEC, (objective,), seed=0), SPEC, objective, 0.05)
    candidate = Candidate(3, None, Genome((-1.5, "x", 0.5)))
    given = Evaluation(3, "ok", objectives={objective.name: 0.7})
    _, noted = with_penalty(strategy, candidate, given)
    assert noted.objectives == given.objectives
    assert noted.penalised == {objective.name: pytest.approx(shown)}
    assert with_penalty(strategy.inner, candidate, given) == (candidate, given)
    failed = Evaluation(3, "failed")
    assert with_penalty(strategy, candidate, failed)[1].penalised == {}


def test_it_searches_as_the_strategy_alone_would_on_penalised_scores() -> None:
    spec = GenomeSpec((Gene("a", low=-1.0), Gene("b", low=-1.0)))
    wrapped = Penalised(CmaEs(spec, (SCORE,), seed=1, popsize=6), spec, SCORE, 0.5)
    plain = CmaEs(spec, (SCORE,), seed=1, popsize=6)
    assert wrapped.by_generation
    for generation in range(4):
        ours, theirs = wrapped.ask(), plain.ask()
        assert [p.genome for p in ours] == [p.genome for p in theirs]
        for place, proposal in enumerate(ours):
            candidate = Candidate(10 * generation + place, None, proposal.genome)
            a, b = (float(v) for v in proposal.genome.values)
            wrapped.tell(candidate, Evaluation(candidate.id, "ok", objectives={"score": a}))
            plain.tell(candidate, Evaluation(candidate.id, "ok", objectives={"score": a - 0.25 * (abs(a) + abs(b))}))
    again = Penalised(CmaEs(spec, (SCORE,), seed=1, popsize=6), spec, SCORE, 0.5)
    again.load_state_dict(wrapped.state_dict())
    assert [p.genome for p in again.ask()] == [p.genome for p in plain.ask()]
    assert wrapped.favourite() == plain.favourite()


def test_refuses_what_cannot_be_penalised() -> None:
    words = GenomeSpec((Gene("word", "categorical", choices=("x", "y")),))
    with pytest.raises(ConfigError, match=r"search.penalty is 0.1.*no genes that are numbers"):
        Penalised(CmaEs(words, (SCORE,), seed=0), words, SCORE, 0.1)
    spec = GenomeSpec((Gene("a"), Gene("b")))
    with pytest.raises(ConfigError, match="M2N2 learns from single items"):
        Penalised(M2N2(spec, (SCORE,), seed=0), spec, SCORE, 0.1)
    with pytest.raises(ConfigError, match=r"2 objectives .score, loss."):
        check_single((SCORE, LOSS))
    for bad in (-0.1, float("nan"), float("inf"), True, "much"):
        with pytest.raises(ConfigError, match=r"search.penalty is"):
            check_penalty(bad)

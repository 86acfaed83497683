"""The search: baselines, phases of ask and tell until the budget is spent, then the held-out items.

The loop has no randomness, reads no clock and keeps little state (`Search.state`). What it does next is a function of
its configuration and of the evaluations told so far, in the order of the ledger: an evaluator that hands out the
evaluations of a ledger in the ledger's order makes the same run again, ordered or not.

- *Ordered*: candidates are told in the order in which they were asked. With `in_flight` ``None`` the strategy's own
  batch (a generation) is asked and told as a whole before the next; with `in_flight` k, candidate ``i + k`` is asked
  as soon as candidate ``i`` has been told, and not before. Either way the ledger is the same for any number of workers.
- *Not ordered*: `in_flight` candidates are always on their way, and each is told when it arrives.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from evomerge.array_genome import ArraySpec
from evomerge.baselines import baseline_recipes
from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import EvomergeError, InfeasibleError
from evomerge.flight import Flight
from evomerge.incumbent import Incumbent
from evomerge.ledger import Ledger
from evomerge.phases import Phase
from evomerge.protocols import Evaluator, Proposal, SearchSpace, Strategy
from evomerge.recipe import PoolInfo, Recipe
from evomerge.strategies.capabilities import Injectable
from evomerge.warm_start import Warmth

_LOG = logging.getLogger(__name__)
BEST = "best"


class Keeper(Protocol):
    """Writes down what is best so far."""

    def __call__(self, incumbent: Incumbent, /) -> None:
        """Called whenever the winner or the front has changed."""


class Interrupted(KeyboardInterrupt):
    """The search was asked to stop, and has: its ledger is as if it had been killed between two events."""


def never() -> bool:
    """A search that runs to its end."""
    return False


def cold(space: SearchSpace, number: int) -> Warmth:
    """A warm start from nothing."""
    return Warmth()


def flying(in_flight: int | None, ordered: bool, slots: int) -> int | None:
    """How many candidates are in flight at once; ``None`` for a generation at a time.

    Not ordered and not given: as many as there are workers, and an eighth more that wait for one, so that no worker
    waits for the strategy. One worker gets one: what is asked later knows more.
    """
    if in_flight is not None or ordered:
        return in_flight
    return slots if slots == 1 else slots + -(-slots // 8)


@dataclass
class Search:
    """One run: everything it works with, and `run`.

    Args:
        pool: what recipes are made of; ``None`` where genomes are the models.
        phases: one after the other.
        evaluator: where candidates are evaluated.
        incumbent: keeps the best.
        ledger: open for appending.
        keep: writes the best down.
        baselines: whether to score the pool's own models on the search items first. On held-out items they are always
            scored: without them the winner's score says nothing.
        held_out: whether the evaluator has a held-out fitness.
        ordered, in_flight: see above.
        warm: what a phase's strategy learns before its first proposal.
        stop: asked between two evaluations; when it says so, nothing more is begun, and what is being evaluated is
            told if its turn comes.
    """

    pool: PoolInfo | None
    phases: Sequence[Phase]
    evaluator: Evaluator
    incumbent: Incumbent
    ledger: Ledger
    keep: Keeper
    baselines: bool = True
    held_out: bool = True
    ordered: bool = True
    in_flight: int | None = None
    warm: Callable[[SearchSpace, int], Warmth] = cold
    stop: Callable[[], bool] = never
    _next_id: int = field(default=0, init=False)
    _counts: dict[str, int] = field(default_factory=dict, init=False)

    @property
    def best(self) -> Candidate | None:
        """The winner so far."""
        return self.incumbent.best

    @property
    def best_value(self) -> float:
        """The winner's first objective; NaN before there is one."""
        return self.incumbent.value

    def run(self) -> Candidate | None:
        """Run to the end and return the best candidate, or ``None`` when every one failed.

        Raises:
            EvomergeError: a baseline failed: then the fitness or the pool is broken, not a candidate.
            Interrupted: `stop` said so. The ledger holds a beginning of what it would have held.
        """
        models = self._models() if self.baselines else []
        scores: dict[str, Mapping[str, float]] = {}
        for candidate, evaluation in self._score(models):
            self.incumbent.baseline(evaluation)
            scores[str(candidate.name)] = evaluation.objectives
        asked, reason = 0, "budget"
        for number, phase in enumerate(self.phases):
            if number and phase.takes_winner and self.best is None:
                reason = f"no candidate could be scored, and phase {phase.name} begins with the winner"
                break
            spent, reason = self._run_phase(number, phase, scores)
            asked += spent
        if self.held_out and self.best is not None:
            self._score([*(models or self._models()), replace(self.best, name=BEST)], "held_out")
        self.ledger.append("stopped", reason=reason, evaluations=asked, counts=dict(sorted(self._counts.items())))
        return self.best

    def _run_phase(self, number: int, phase: Phase, scores: Mapping[str, Mapping[str, float]]) -> tuple[int, str]:
        """One phase; returns the evaluations spent and why it ended."""
        winner = self.best
        space = phase.space(winner.recipe if winner is not None else None)
        warmth = self.warm(space, number)
        strategy = phase.strategy(warmth.started(space.spec), scores)
        limit = self.ledger.in_flight(number, flying(self.in_flight, self.ordered, self.evaluator.slots))
        self.ledger.append(
            "phase",
            phase=phase.name,
            number=number + 1,
            phases=len(self.phases),
            evaluations=phase.evaluations,
            genes=len(space.spec) if isinstance(space.spec, ArraySpec) else [gene.name for gene in space.spec],
            ordered=self.ordered,
            in_flight=limit,
            winner=winner.id if number and winner is not None else None,
        )
        self._learn(warmth, space, strategy)
        # Candidates of the user's come first; the strategy learns from them when it is able to.
        first = deque(warmth.again[: phase.evaluations])
        named: set[int] = set()
        flight = Flight(self.evaluator, "search", ordered=self.ordered)
        left = phase.evaluations
        while True:
            while left and (limit is None or len(flight) < limit):
                if first:
                    proposals: Sequence[Proposal] = [Proposal(first.popleft())]
                    named.add(self._next_id)
                elif limit is None and flight:
                    break
                else:
                    proposals = strategy.ask(None if limit is None else min(limit - len(flight), left))[:left]
                if not proposals:
                    break
                left -= len(proposals)
                for proposal in proposals:
                    self._launch(proposal, space, flight)
            if not flight:
                break
            if self.stop():
                flight.ground()  # the strategy is asked and told as ever, so that the ledger stays a beginning
                if not flight.landing:
                    raise Interrupted
            candidate, evaluation = flight.land()
            self._record(candidate, evaluation)
            learn = _inject(strategy) if candidate.id in named else strategy.tell
            learn(candidate, evaluation)
        return phase.evaluations - left, "the strategy has nothing more to propose" if left else "budget"

    def _learn(self, warmth: Warmth, space: SearchSpace, strategy: Strategy) -> None:
        """Tell a strategy what an earlier run found, without evaluating it again."""
        for genome, evaluation, source in warmth.told:
            candidate = Candidate(self._id(), space.decode(genome), genome)
            known = replace(evaluation, candidate=candidate.id)
            self.ledger.log_warm(candidate, known, source)
            self._improve(candidate, known)
            _inject(strategy)(candidate, known)

    def _launch(self, proposal: Proposal, space: SearchSpace, flight: Flight) -> None:
        recipe: Recipe | None = None
        refused: str | None = None
        try:
            recipe = space.decode(proposal.genome)
        except InfeasibleError as error:
            refused = str(error)
        candidate = Candidate(self._id(), recipe, proposal.genome, proposal.parents)
        self.ledger.log_asked(candidate)
        flight.launch(candidate, refused)

    def _models(self) -> list[Candidate]:
        """The pool's own models, and what else the search has to beat."""
        recipes = baseline_recipes(self.pool) if self.pool is not None else {}
        return [Candidate(self._id(), recipe, name=name) for name, recipe in recipes.items()]

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _score(self, candidates: Sequence[Candidate], split: Split = "search") -> list[tuple[Candidate, Evaluation]]:
        """Evaluate models that must have a score, in order."""
        flight = Flight(self.evaluator, split, ordered=True)
        for candidate in candidates:
            self.ledger.log_asked(candidate, split)
        for candidate in candidates:
            flight.launch(candidate)
        scored = []
        while flight:
            if self.stop():
                flight.ground()
                if not flight.landing:
                    raise Interrupted
            candidate, evaluation = flight.land()
            self.ledger.log_told(evaluation)
            if not evaluation.ok:
                raise EvomergeError(
                    f"{candidate.name!r} could not be scored on the {split} items: {evaluation.error}",
                    "every model of the pool must have a score",
                    "check the fitness with `evomerge evaluate`",
                )
            scored.append((candidate, evaluation))
        return scored

    def _record(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self.ledger.log_told(evaluation)
        self._counts[evaluation.status] = self._counts.get(evaluation.status, 0) + 1
        if not evaluation.ok:
            _LOG.info(
                "candidate %d %s: %s\n%s", candidate.id, evaluation.status, evaluation.error, evaluation.traceback
            )
        self._improve(candidate, evaluation)

    def _improve(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Write the winner and the front down where they have changed."""
        fields: dict[str, Any] | None = self.incumbent.see(candidate, evaluation)
        if fields is not None:
            self.keep(self.incumbent)
            self.ledger.append("improved", **fields)


def _inject(strategy: Strategy) -> Callable[[Candidate, Evaluation], None]:
    """How a strategy learns from a candidate that it did not propose."""
    return strategy.inject if isinstance(strategy, Injectable) else strategy.tell

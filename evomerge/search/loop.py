"""The search: baselines, phases of ask and tell until the budget is spent, then the held-out items.

The loop has no randomness, reads no clock and keeps little state (`Search.state`). What it does next is a function of
its configuration and of the evaluations told so far, in the order of the ledger: an evaluator that hands out the
evaluations of a ledger in the ledger's order makes the same run again, ordered or not.
`evomerge.session.checkpointing` takes that state down between two evaluations, and begins from it.

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
from typing import Any

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import EvomergeError, InfeasibleError
from evomerge.genomes.arrays import ArraySpec
from evomerge.genomes.genome import Genome
from evomerge.protocols import Evaluator, Proposal, SearchSpace, Strategy
from evomerge.recipes.pool_info import PoolInfo, baseline_recipes
from evomerge.recipes.recipe import Recipe
from evomerge.run.ledger import Ledger
from evomerge.search.failures import Streak
from evomerge.search.hooks import GaveUpError, Interrupted, Keeper, Saver, forgetful, never
from evomerge.search.in_flight import Flight
from evomerge.search.incumbent import Incumbent
from evomerge.search.phases import Phase
from evomerge.search.state import Course
from evomerge.search.warm_start import Warmth, cold
from evomerge.strategies.bases.capabilities import Injectable

_LOG = logging.getLogger(__name__)
BEST = "best"


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
        save: takes the state down.
        give_up: after so many failures in a row for the same reason; ``None`` for never.

    Attributes:
        settled: whether nothing is half done: the state can be taken down, also when an exception ends the search.
        course: the phase that is under way.
        winners, begins: the best candidate, and the next candidate's id, when each phase began.
        scores: of the baselines, by name.
        spent: evaluations of the phases that are over.
        next_id: of the next candidate.
        counts: of evaluations by status, baselines left out.
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
    save: Saver = forgetful
    give_up: int | None = None
    settled: bool = field(default=True, init=False)
    course: Course | None = field(default=None, init=False)
    winners: list[Candidate | None] = field(default_factory=list, init=False)
    begins: list[int] = field(default_factory=list, init=False)
    scores: dict[str, Mapping[str, float]] = field(default_factory=dict, init=False)
    spent: int = field(default=0, init=False)
    next_id: int = field(default=0, init=False)
    counts: dict[str, int] = field(default_factory=dict, init=False)
    _scored: list[Candidate] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._streak = Streak(self.give_up)

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
            GaveUpError: so did too many candidates in a row.
            Interrupted: `stop` said so. The ledger holds a beginning of what it would have held.
        """
        try:
            if not self.winners:
                self.take_models()
                for candidate, evaluation in self._score(self._scored):
                    self.incumbent.baseline(evaluation)
                    self.scores[str(candidate.name)] = evaluation.objectives
            reason = self._run_phases()
        except (KeyboardInterrupt, EvomergeError):
            if self.settled and self.course is not None:
                self.save(self, now=True)
            raise
        if self.held_out and self.best is not None:
            self._score([*(self._scored or self._models()), replace(self.best, name=BEST)], "held_out")
        self.ledger.append("stopped", reason=reason, evaluations=self.spent, counts=dict(sorted(self.counts.items())))
        return self.best

    def take_models(self) -> None:
        """Number the pool's own models, which come first."""
        self._scored = self._models() if self.baselines else []

    def _run_phases(self) -> str:
        """What remains of all phases; returns why the last one ended."""
        reason = "budget"
        while self.course is not None or len(self.winners) < len(self.phases):
            if self.course is None:
                phase = self.phases[len(self.winners)]
                if self.winners and phase.takes_winner and self.best is None:
                    return f"no candidate could be scored, and phase {phase.name} begins with the winner"
                self.course = self._begin(len(self.winners), phase)
            reason = self._go_on(self.course)
            self.spent += self.course.asked
            self.course, self.settled = None, True
        return reason

    def _begin(self, number: int, phase: Phase) -> Course:
        winner = self.best
        self.winners.append(winner)
        self.begins.append(self.next_id)
        space = phase.space(winner.recipe if winner is not None else None)
        warmth = self.warm(space, number)
        strategy = phase.strategy(warmth.started(space.spec), self.scores)
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
        flight = Flight(self.evaluator, "search", ordered=self.ordered)
        first, bounded = deque(warmth.again[: phase.evaluations]), len(warmth.again) > phase.evaluations
        return Course(phase, space, strategy, limit, first, flight, bounded=bounded)

    def _go_on(self, course: Course) -> str:
        """Ask and tell until the phase is over; returns why it is."""
        flight, strategy = course.flight, course.strategy
        while True:
            self.settled = False
            self._fill(course)
            if not flight:
                break
            self.settled = True
            if self._streak.hopeless:
                raise GaveUpError(
                    f"{self._streak.length} candidates in a row failed the same way: {self._streak.reason}",
                    "a fitness, a pool and workers that work",
                    "mend what is broken and go on with `evomerge resume RUN`, or set search.give_up=null",
                )
            self.save(self, now=False)
            if self.stop():
                flight.ground()  # the strategy is asked and told as ever, so that the ledger stays a beginning
                if not flight.landing:
                    raise Interrupted
            flight.wait()
            self.settled = False
            candidate, evaluation = flight.land()
            self._record(candidate, evaluation)
            learn = _inject(strategy) if candidate.id in course.named else strategy.tell
            learn(candidate, evaluation)
            course.named.discard(candidate.id)
        return "the strategy has nothing more to propose" if course.left else "budget"

    def _fill(self, course: Course) -> None:
        """Ask for as many candidates as may be in flight."""
        flight, limit = course.flight, course.limit
        while course.left and (limit is None or len(flight) < limit):
            if course.first:
                proposals: Sequence[Proposal] = [Proposal(course.first.popleft())]
                course.named.add(self.next_id)
            elif limit is None and flight:
                break
            else:
                proposals = course.ask()
            if not proposals:
                break
            course.asked += len(proposals)
            for proposal in proposals:
                candidate, refused = self.decoded(self._id(), proposal.genome, proposal.parents, course.space)
                self.ledger.log_asked(candidate)
                flight.launch(candidate, refused)

    def _learn(self, warmth: Warmth, space: SearchSpace, strategy: Strategy) -> None:
        """Tell a strategy what an earlier run found, without evaluating it again."""
        for genome, evaluation, source in warmth.told:
            candidate = Candidate(self._id(), space.decode(genome), genome)
            known = replace(evaluation, candidate=candidate.id)
            self.ledger.log_warm(candidate, known, source)
            self._improve(candidate, known)
            _inject(strategy)(candidate, known)

    @staticmethod
    def decoded(
        number: int, genome: Genome, parents: tuple[int, ...], space: SearchSpace
    ) -> tuple[Candidate, str | None]:
        """A candidate, and why the search space has no model for it, if so."""
        recipe: Recipe | None = None
        refused: str | None = None
        try:
            recipe = space.decode(genome)
        except InfeasibleError as error:
            refused = str(error)
        return Candidate(number, recipe, genome, parents), refused

    def _models(self) -> list[Candidate]:
        """The pool's own models, and what else the search has to beat."""
        recipes = baseline_recipes(self.pool) if self.pool is not None else {}
        return [Candidate(self._id(), recipe, name=name) for name, recipe in recipes.items()]

    def _id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

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
        if self.ledger.log_told(evaluation) >= 0:  # what is in the ledger of an earlier session may have been mended
            self._streak.see(evaluation)
        self.counts[evaluation.status] = self.counts.get(evaluation.status, 0) + 1
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

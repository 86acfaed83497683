"""The search: baselines, phases of ask and tell until the budget is spent, then the held-out items.

The loop has no randomness, reads no clock and keeps little state (`Search.state`), which `session.checkpointing` saves.
What it does next follows from its configuration and the evaluations told so far: an evaluator that hands out the
evaluations of a ledger in the ledger's order makes the same run again, ordered or not.

- *Ordered*: candidates are told in the order in which they were asked. With `in_flight` ``None`` the strategy's own
  batch (a generation) is asked and told as a whole before the next; with `in_flight` k, candidate ``i + k`` is asked
  as soon as candidate ``i`` has been told, and not before. Either way the ledger is the same for any number of workers.
- *Not ordered*: `in_flight` candidates are always on their way, and each is told when it arrives.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import EvomergeError
from evomerge.protocols import Evaluator, Proposal, SearchSpace, Strategy
from evomerge.recipes.pool_info import PoolInfo
from evomerge.run.ledger import Ledger
from evomerge.search.failures import Streak
from evomerge.search.finalists import Leaders, best_of, favourite, worth
from evomerge.search.hooks import (
    BestWriter,
    CheckpointHook,
    Interrupted,
    ResponseKeeper,
    never_stop,
    no_checkpoint,
    no_responses,
)
from evomerge.search.in_flight import PendingEvaluations, in_flight_limit
from evomerge.search.incumbent import Incumbent
from evomerge.search.informing import begin, informed
from evomerge.search.phases import Phase
from evomerge.search.racing.race import Race
from evomerge.search.racing.raced import pending_of
from evomerge.search.starts import begin_with, compared_recipes
from evomerge.search.state import PhaseState, SearchState, decoded
from evomerge.search.stopping import StopRules
from evomerge.search.warm_start import WarmStart, no_warm_start
from evomerge.strategies.bases.capabilities import learner
from evomerge.strategies.bases.penalised import with_penalty

_LOG = logging.getLogger(__name__)
BEST = "best"


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
        baselines: whether to score the pool's own models on the search items first; on held-out items they always are.
        held_out: whether the evaluator has a held-out fitness.
        ordered: whether candidates are told in the order in which they were asked.
        in_flight: how many are asked ahead; ``None`` for a generation at a time (ordered) or a few more than slots.
        warm: what a phase's strategy learns before its first proposal.
        stop: asked between evaluations; when it says so, nothing more is begun, and what is going on told in its turn.
        save: saves the state.
        responses: keeps what models answered.
        race: scores candidates on some items first; ``None`` for all at once.
        finalists: so many of the best are scored on all items in the end, and the winner is chosen there; 0 for none.
        rescores: whether those are too that the search scored on all items, since it did so in another way.
        give_up: after so many failures in a row for the same reason; ``None`` for never.
        rules: what ends it before the budget is spent.

    Attributes:
        state: everything that decides how it goes on.
    """

    pool: PoolInfo | None
    phases: Sequence[Phase]
    evaluator: Evaluator
    incumbent: Incumbent
    ledger: Ledger
    keep: BestWriter
    baselines: bool = True
    held_out: bool = True
    ordered: bool = True
    in_flight: int | None = None
    warm: Callable[[SearchSpace, int], WarmStart] = no_warm_start
    stop: Callable[[], bool] = never_stop
    save: CheckpointHook = no_checkpoint
    responses: ResponseKeeper = no_responses
    give_up: int | None = None
    race: Race | None = None
    finalists: int = 0
    rescores: bool = False
    rules: StopRules = field(default_factory=StopRules)
    state: SearchState = field(init=False)
    _scored: list[Candidate] = field(default_factory=list, init=False)
    _compared: list[tuple[Candidate, Evaluation]] = field(default_factory=list, init=False)
    _last: tuple[SearchSpace, Strategy] | None = field(default=None, init=False)  # of the phase that is over

    def __post_init__(self) -> None:
        self._streak = Streak(self.give_up)
        kept = Leaders(self.incumbent.objectives[0], self.finalists, self.rescores, self.race is not None)
        self.state = SearchState(self.incumbent, leaders=kept)

    def begin_from(self, state: SearchState) -> None:
        """Go on from a state that was saved, instead of beginning."""
        self._take_models()
        self.state = state

    def pending(self, strategy: Strategy) -> PendingEvaluations:
        """What keeps the candidates of a phase that are in flight."""
        return pending_of(self.evaluator, self.ordered, self.race, strategy, self.incumbent)

    @property
    def best(self) -> Candidate | None:
        """The winner so far."""
        return self.incumbent.best

    def run(self) -> Candidate | None:
        """Run to the end and return the best candidate, or ``None`` when every one failed.

        Raises:
            EvomergeError: a baseline failed: then the fitness or the pool is broken, not a candidate.
            GaveUpError: so did too many candidates in a row.
            Interrupted: `stop` said so. The ledger holds a beginning of what it would have held.
        """
        try:
            if not self.state.winners:
                self._take_models()
                self._compared = self._score(self._scored)
                for candidate, evaluation in self._compared:
                    self.incumbent.baseline(evaluation)
                    if self.race is not None:
                        self.race.see(evaluation, baseline=True)
                    self.state.scores[str(candidate.name)] = evaluation.objectives
            reason = self._run_phases()
        except (KeyboardInterrupt, EvomergeError):
            if self.state.settled and self.state.phase is not None:
                self.save(self.state, now=True)
            raise
        if self.finalists and self.best is not None:
            self._choose()
        if self.held_out and self.best is not None:
            self._score([*(self._scored or self._models()), replace(self.best, name=BEST)], "held_out")
        counts, more = dict(sorted(self.state.counts.items())), self.state.stopping.event
        self.ledger.append("stopped", reason=reason, evaluations=self.state.spent, counts=counts, **more)
        return self.best

    def _take_models(self) -> None:
        """Number the pool's own models, which come first."""
        self._scored = self._models() if self.baselines else []

    def _run_phases(self) -> str:
        """What remains of all phases; returns why the last one ended."""
        reason = "budget"
        while self.state.phase is not None or len(self.state.winners) < len(self.phases):
            if self.state.phase is None:
                if self.state.stopping.final:
                    return reason
                phase = self.phases[len(self.state.winners)]
                if self.state.winners and phase.takes_winner and self.best is None:
                    return f"no candidate could be scored, and phase {phase.name} begins with the winner"
                self.state.phase = self._begin(len(self.state.winners), phase)
            reason = self._go_on(self.state.phase)
            self._last = self.state.phase.space, self.state.phase.strategy
            self.state.spent += self.state.phase.asked
            self.state.phase, self.state.settled = None, True
        return reason

    def _begin(self, number: int, phase: Phase) -> PhaseState:
        winner = self.state.begins_with(phase)
        self.state.winners.append(winner)
        self.state.begins.append(self.state.next_id)
        space = phase.space(winner.recipe if winner is not None else None)
        objective = self.incumbent.objectives[0]
        warm = begin_with(self.warm, space, number, objective, self.state.scores, self._compared)
        strategy = informed(self.state.strategy_of(phase, warm.started(space.spec)), space, self.race)
        begin(strategy, warm.best)
        limit = self.ledger.in_flight(number, in_flight_limit(self.in_flight, self.ordered, self.evaluator.slots))
        fields = {"number": number + 1, "phases": len(self.phases), "ordered": self.ordered, "in_flight": limit}
        first = winner.id if number and winner is not None else None
        self.ledger.append("phase", **phase.fields(space), **fields, winner=first)
        self._learn(warm, space, strategy)
        self.state.stopping.begin()
        # Candidates of the user's come first; the strategy learns from them when it is able to.
        queue, bounded = deque(warm.to_reevaluate[: phase.evaluations]), len(warm.to_reevaluate) > phase.evaluations
        return PhaseState(phase, space, strategy, limit, queue, self.pending(strategy), bounded=bounded)

    def _go_on(self, phase: PhaseState) -> str:
        """Ask and tell until the phase is over; returns why it is."""
        pending, strategy = phase.pending, phase.strategy
        while True:
            self.state.settled = False
            self._fill(phase)
            if not pending:
                break
            self.state.settled = True
            self._streak.require_hope()
            if pending.settled:
                self.save(self.state, now=False)
            self.state.settled = pending.settled
            self._heed(pending)
            while not pending.step():
                self._heed(pending)
            self.state.settled = False
            candidate, evaluation = with_penalty(strategy, *pending.next_result())
            self._record(candidate, evaluation)
            learn = learner(strategy) if candidate.id in phase.named else strategy.tell
            learn(candidate, replace(pending.shown(evaluation), responses={}))  # strategies may keep what they are told
            phase.named.discard(candidate.id)
        return self.state.stopping.reason or ("the strategy has nothing more to propose" if phase.left else "budget")

    def _fill(self, phase: PhaseState) -> None:
        """Ask for as many candidates as may be in flight."""
        pending, limit = phase.pending, phase.limit
        if phase.left and self.rules.over(self.state.stopping, self.ledger, self.incumbent):
            phase.bounded = True
            return
        while phase.left and (limit is None or len(pending) < limit):
            if phase.first:
                proposals: Sequence[Proposal] = [Proposal(phase.first.popleft())]
                phase.named.add(self.state.next_id)
            elif limit is None and pending:
                break
            else:
                proposals = phase.ask()
            if not proposals:
                break
            phase.asked += len(proposals)
            for proposal in proposals:
                candidate, refused = decoded(self.state.new_id(), proposal.genome, proposal.parents, phase.space)
                self.ledger.log_asked(candidate)
                pending.submit(candidate, refused)

    def _learn(self, warm: WarmStart, space: SearchSpace, strategy: Strategy) -> None:
        """Tell a strategy what an earlier run found, without evaluating it again."""
        for genome, evaluation, source in warm.evaluated:
            candidate = Candidate(self.state.new_id(), space.decode(genome), genome)
            known = replace(evaluation, candidate=candidate.id)
            self.ledger.log_warm(candidate, known, source)
            self._improve(candidate, known)
            learner(strategy)(candidate, known)

    def _models(self) -> list[Candidate]:
        """The pool's own models, and what else the search has to beat."""
        recipes = compared_recipes(self.pool, self.phases[0].space(None))
        return [Candidate(self.state.new_id(), recipe, name=name) for name, recipe in recipes.items()]

    def _choose(self) -> None:
        """Score the finalists on all items, and let the best of them be the winner."""
        leaders, last = self.state.leaders, self._last if self.race is not None else None
        leaders.narrow(worth(self.race, last[1] if last is not None else None))
        more = favourite(*last, self.state.new_id, leaders.models) if last is not None else []
        unknown = [candidate for candidate in (*leaders.candidates, *more) if candidate.id not in leaders.known]
        scored = [*self._score(unknown, "validation", must=False), *leaders.known.values()]
        found = best_of(scored, self.incumbent.objectives[0])
        if found is not None:
            self.ledger.append("finalists", winner=found[0].id, **leaders.compared(scored))
            self.incumbent.settle(*found)
            self.keep(self.incumbent)

    def _score(
        self, candidates: Sequence[Candidate], split: Split = "search", *, must: bool = True
    ) -> list[tuple[Candidate, Evaluation]]:
        """Evaluate models on all items, in order; those that `must` have a score raise where they have none."""
        pending = PendingEvaluations(self.evaluator, split, ordered=True)
        for candidate in candidates:
            self.ledger.log_asked(candidate, split)
        for candidate in candidates:
            pending.submit(candidate)
        scored = []
        while pending:
            self._heed(pending)
            candidate, evaluation = pending.next_result()
            self.responses(evaluation, candidate.name, compared=True)
            self.ledger.log_told(evaluation)
            if must and not evaluation.ok:
                raise EvomergeError(
                    f"{candidate.name!r} could not be scored on the {split} items: {evaluation.error}",
                    "every model of the pool must have a score",
                    "check the fitness with `evomerge evaluate`",
                )
            scored.append((candidate, evaluation))
        return scored

    def _heed(self, pending: PendingEvaluations) -> None:
        """Begin nothing more where `stop` says so; end where nothing is waited for any longer."""
        if self.stop():
            pending.stop()  # the strategy is asked and told as ever, so that the ledger stays a beginning
            if not pending.expects_result:
                raise Interrupted

    def _record(self, candidate: Candidate, evaluation: Evaluation) -> None:
        if self.ledger.log_told(evaluation) >= 0:  # what is in the ledger of an earlier session may have been mended
            self._streak.see(evaluation)
        self.state.counts[evaluation.status] = self.state.counts.get(evaluation.status, 0) + 1
        if not evaluation.ok:
            _LOG.info(
                "candidate %d %s: %s\n%s", candidate.id, evaluation.status, evaluation.error, evaluation.traceback
            )
        if self.race is not None:
            self.race.see(evaluation)
        self.state.see_leader(candidate, evaluation)
        self.responses(evaluation, None, compared=self._improve(candidate, evaluation))

    def _improve(self, candidate: Candidate, evaluation: Evaluation) -> bool:
        """Write the winner and the front down where they have changed; whether they have."""
        fields = self.incumbent.see(candidate, evaluation) if self.state.may_win(candidate) else None
        self.rules.see(self.state.stopping, evaluation, fields is not None)
        if fields is not None:
            self.keep(self.incumbent)
            self.ledger.append("improved", **fields)
        return fields is not None

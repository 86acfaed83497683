"""What decides how a search goes on: the phase that is under way, and everything before it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import InfeasibleError
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.protocols import Proposal, SearchSpace, Strategy
from evomerge.recipes.recipe import Recipe
from evomerge.search.aims import Aims, strategy_of
from evomerge.search.finalists import Leaders
from evomerge.search.in_flight import PendingEvaluations
from evomerge.search.incumbent import Incumbent
from evomerge.search.phases import Phase
from evomerge.search.stopping import Stopping


@dataclass
class PhaseState:
    """A phase that is under way.

    Attributes:
        phase: which one.
        space, strategy: its own.
        limit: how many candidates are in flight at once; ``None`` for a generation at a time.
        first: genomes of the user's that were not asked yet.
        pending: candidates asked and not told.
        asked: how many candidates so far.
        named: ids of the user's, until they are told.
        bounded: whether what was asked was fewer than there were, because the budget ends, or a
            rule has ended the phase.
    """

    phase: Phase
    space: SearchSpace
    strategy: Strategy
    limit: int | None
    first: deque[Genome]
    pending: PendingEvaluations
    asked: int = 0
    named: set[int] = field(default_factory=set)
    bounded: bool = False

    @property
    def left(self) -> int:
        """How many candidates may still be asked."""
        return self.phase.evaluations - self.asked

    def ask(self) -> Sequence[Proposal]:
        """The strategy's proposals, as many as may be submitted now."""
        if self.limit is None:
            proposals = self.strategy.ask(None)
            self.bounded = self.bounded or len(proposals) > self.left
            return proposals[: self.left]
        room = self.limit - len(self.pending)
        self.bounded = self.bounded or room > self.left
        return self.strategy.ask(min(room, self.left))[: self.left]


@dataclass
class SearchState:
    """Everything that decides how a search goes on, between two evaluations.

    Attributes:
        incumbent: keeps the best.
        leaders: those that the winner is chosen among in the end.
        phase: the one that is under way.
        aims: of the latest phase that is searched for several preferences.
        winners, begins: the best candidate (for a preference, the nearest), and the next candidate's id, when each
            phase began.
        scores: objectives of the baselines, by name.
        spent: evaluations of the phases that are over.
        next_id: of the next candidate.
        counts: of evaluations by status, baselines left out.
        stopping: how near it is to an early end.
        settled: whether nothing is half done: the state can be saved, also when an exception ends the search.
    """

    incumbent: Incumbent
    leaders: Leaders
    phase: PhaseState | None = None
    aims: Aims | None = None
    winners: list[Candidate | None] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    scores: dict[str, Mapping[str, float]] = field(default_factory=dict)
    spent: int = 0
    next_id: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    stopping: Stopping = field(default_factory=Stopping)
    settled: bool = True

    def begins_with(self, phase: Phase) -> Candidate | None:
        """The winner that a phase begins with; for a preference, what the first of them found to be the nearest."""
        if phase.preference is None:
            return self.incumbent.best
        if phase.place == 0 or self.aims is None:
            self.aims = Aims.of(phase, self.incumbent, self.scores)
        return self.aims.winners[phase.place]

    def strategy_of(self, phase: Phase, spec: GenomeSpec) -> Strategy:
        """The strategy of a phase that begins, for these genes."""
        return strategy_of(phase, spec, self.scores, self.aims, self.incumbent)

    def may_win(self, candidate: Candidate) -> bool:
        """Whether a candidate of the phase under way can be the winner; some strategies have others to learn from."""
        ask = getattr(self.phase.strategy, "may_win", None) if self.phase is not None else None
        return ask is None or bool(ask(candidate))

    def see_leader(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Take in one that the winner may be chosen among."""
        if self.may_win(candidate):
            self.leaders.see(candidate, evaluation)

    def new_id(self) -> int:
        """The next candidate's id."""
        self.next_id += 1
        return self.next_id - 1


def decoded(number: int, genome: Genome, parents: tuple[int, ...], space: SearchSpace) -> tuple[Candidate, str | None]:
    """A candidate, and why the search space has no model for it, if so."""
    recipe: Recipe | None = None
    refused: str | None = None
    try:
        recipe = space.decode(genome)
    except InfeasibleError as error:
        refused = str(error)
    return Candidate(number, recipe, genome, parents), refused

"""The search: baselines, ask and tell until the budget is spent, then the held-out items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import EvomergeError, InfeasibleError
from evomerge.ledger import Ledger
from evomerge.protocols import Evaluator, Objective, Proposal, SearchSpace, Strategy
from evomerge.recipe import PoolInfo, Recipe

BEST = "best"
UNIFORM = "uniform average"


class Observer(Protocol):
    """Told of every evaluation as it enters the ledger."""

    def __call__(self, candidate: Candidate, evaluation: Evaluation, *, improved: bool) -> None:
        """Show it."""


def silent(candidate: Candidate, evaluation: Evaluation, *, improved: bool) -> None:
    """An observer that shows nothing."""


@dataclass
class Search:
    """One run: everything it works with, and `run`.

    Evaluations are told in the order in which they were asked, a batch (a generation) at a time, so that
    the ledger is the same whatever the number of workers.

    Args:
        pool: what recipes are made of.
        space, strategy, evaluator: the parts.
        objective: the one that decides what is best.
        ledger: open for appending.
        keep_best: called with every better recipe, to write it down.
        evaluations: budget, baselines not counted.
        baselines: whether to score the pool's own models first.
        held_out: whether the evaluator has a held-out fitness.
        observe: told of everything that happens.
    """

    pool: PoolInfo
    space: SearchSpace
    strategy: Strategy
    evaluator: Evaluator
    objective: Objective
    ledger: Ledger
    keep_best: Callable[[Recipe], None]
    evaluations: int
    baselines: bool = True
    held_out: bool = True
    observe: Observer = silent
    best: Candidate | None = field(default=None, init=False)
    best_value: float = field(default=float("nan"), init=False)
    _next_id: int = field(default=0, init=False)
    _counts: dict[str, int] = field(default_factory=dict, init=False)

    def run(self) -> Candidate | None:
        """Run to the end and return the best candidate, or ``None`` when every one failed.

        Raises:
            EvomergeError: a baseline failed: then the fitness or the pool is broken, not a candidate.
        """
        baselines = self._baselines() if self.baselines else []
        for evaluation in self._evaluate(baselines):
            self._require_ok(evaluation, baselines)
        asked = 0
        reason = "budget"
        while asked < self.evaluations:
            proposals = list(self.strategy.ask(None))[: self.evaluations - asked]
            if not proposals:
                reason = "the strategy has nothing more to propose"
                break
            asked += len(proposals)
            candidates = [self._candidate(proposal) for proposal in proposals]
            by_id = {candidate.id: candidate for candidate in candidates}
            for evaluation in self._evaluate(candidates):
                self.strategy.tell(by_id[evaluation.candidate], evaluation)
        if self.held_out and self.best is not None:
            final = Candidate(self.best.id, self.best.recipe, self.best.genome, self.best.parents, BEST)
            finalists = [*baselines, final]
            for evaluation in self._evaluate(finalists, "held_out"):
                self._require_ok(evaluation, finalists)
        self.ledger.append("stopped", reason=reason, evaluations=asked, counts=dict(sorted(self._counts.items())))
        return self.best

    def _baselines(self) -> list[Candidate]:
        info = self.pool
        names = [*info.sources, *([info.base] if info.base else [])]
        recipes = {name: info.linear({name: 1.0}) for name in names}
        recipes[UNIFORM] = info.linear(dict.fromkeys(info.sources, 1.0 / len(info.sources)))
        return [Candidate(self._id(), recipe, name=name) for name, recipe in recipes.items()]

    def _candidate(self, proposal: Proposal) -> Candidate:
        try:
            recipe = self.space.decode(proposal.genome)
        except InfeasibleError as error:
            self._refused[self._next_id] = str(error)
            recipe = None
        return Candidate(self._id(), recipe, proposal.genome, proposal.parents)

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _evaluate(self, candidates: Sequence[Candidate], split: Split = "search") -> Sequence[Evaluation]:
        """Evaluate a batch; ledger, best and observer follow in the order asked."""
        for candidate in candidates:
            self.ledger.log_asked(candidate, split)
        feasible = [candidate for candidate in candidates if candidate.recipe is not None]
        for candidate in feasible:
            self.evaluator.submit(candidate, split)
        arrived: dict[int, Evaluation] = {}
        told: list[Evaluation] = []
        for candidate in candidates:
            while candidate.recipe is not None and candidate.id not in arrived:
                evaluation = self.evaluator.collect()
                arrived[evaluation.candidate] = evaluation
            outcome = arrived.pop(candidate.id, None) or Evaluation(
                candidate.id, "infeasible", split, error=self._refused.pop(candidate.id, "")
            )
            told.append(self._record(candidate, outcome))
        return told

    def _record(self, candidate: Candidate, evaluation: Evaluation) -> Evaluation:
        self.ledger.log_told(evaluation)
        improved = False
        if evaluation.split == "search" and candidate.genome is not None:
            self._counts[evaluation.status] = self._counts.get(evaluation.status, 0) + 1
            value = evaluation.objectives.get(self.objective.name)
            if evaluation.ok and value is not None and candidate.recipe is not None:
                improved = self.best is None or self.objective.gain(value) > self.objective.gain(self.best_value)
                if improved:
                    self.best, self.best_value = candidate, value
                    self.keep_best(candidate.recipe)
                    self.ledger.append(
                        "improved", candidate=candidate.id, objective=value, recipe_hash=candidate.recipe.hash
                    )
        self.observe(candidate, evaluation, improved=improved)
        return evaluation

    def _require_ok(self, evaluation: Evaluation, candidates: Sequence[Candidate]) -> None:
        if not evaluation.ok:
            name = next(c.name for c in candidates if c.id == evaluation.candidate)
            raise EvomergeError(
                f"{name!r} could not be scored on the {evaluation.split} items: {evaluation.error}",
                "every model of the pool must have a score",
                "check the fitness with `evomerge evaluate`",
            )

    _refused: dict[int, str] = field(default_factory=dict, init=False)

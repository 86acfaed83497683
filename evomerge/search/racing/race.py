"""Candidates that are scored on some items first, and on more where that may pay: what their races have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evomerge.candidate import Evaluation, Part
from evomerge.objectives import Objective
from evomerge.search.racing.cheap import CheapRung
from evomerge.search.racing.joined import Runner
from evomerge.search.racing.knowledge import Knowledge
from evomerge.search.racing.parts import ItemOrder
from evomerge.search.racing.settings import Racing, counted

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

    from evomerge.search.racing.pruning import Pruning


class Race:
    """What races of a search have in common: the items' order, the steps, and what is known of the items.

    Args:
        settings: of the user's.
        counts: items of each task.
        knowledge: of the items.
        objectives: of the fitness; the first decides.
        seed: of the order.
        pruner: of Optuna's, where that is whom candidates are against.
        cheap: what the cheap rung decides by, another fitness's objective; ``None`` where there is no such rung.

    Raises:
        ConfigError: more items than there are.
    """

    def __init__(
        self,
        settings: Racing,
        counts: Mapping[str, int],
        knowledge: Knowledge,
        objectives: Sequence[Objective],
        seed: int,
        pruner: BasePruner | None = None,
        cheap: Objective | None = None,
    ) -> None:
        self.settings, self.knowledge, self.objective = settings, knowledge, objectives[0]
        self.total = sum(counts.values())
        self.steps = settings.steps(self.total)
        self._counts, self._seed = dict(counts), seed
        knowledge.counts = self._counts
        self._order: ItemOrder | None = None
        self.cheap = CheapRung(settings.keep_cheap, cheap, self.objective) if cheap is not None else None
        self.pruning: Pruning | None = None
        if pruner is not None:
            from evomerge.search.racing.pruning import Pruning

            steps = counted(self.steps, self.total)
            self.pruning = Pruning(pruner, self.objective, steps, knowledge.estimator)

    def forget(self) -> None:
        """Know nothing of any model."""
        self.knowledge.forget()
        if self.cheap is not None:
            self.cheap.forget()
        if self.pruning is not None:
            self.pruning.forget()

    def see(self, evaluation: Evaluation, *, baseline: bool = False) -> None:
        """Take in an evaluation of the search's items, in the order of the ledger."""
        self.knowledge.see(evaluation, baseline=baseline)
        if self.cheap is not None:
            self.cheap.see(evaluation)
        if self.pruning is not None:
            self.pruning.see(evaluation, baseline=baseline)

    @property
    def by_generation(self) -> bool:
        """Whether the candidates of a generation are compared with each other."""
        return self.settings.against == "generation" and (len(self.steps) > 1 or self.cheap is not None)

    def start(self, number: int, group: int, at_once: bool = False) -> float:
        """Where the items of a candidate begin, by its number, or that of the first of its generation."""
        stretch = self.steps[-1 if at_once else 0]
        return (number * stretch / max(1, group)) % 1.0 if self.settings.rotate else 0.0

    def over(self, runner: Runner) -> bool:
        """Whether a candidate has been scored on all items that it can be."""
        return runner.done == (1 if runner.at_once else len(self.steps))

    def part(self, runner: Runner) -> Part:
        """The items that a candidate is scored on next."""
        if self._order is None:  # the pool's own models are known by now
            self._order = ItemOrder(self._counts, self._seed, self.knowledge.order())
        done = runner.done
        first = self.steps[done - 1] if done else 0.0
        return self._order.part(first, self.steps[-1 if runner.at_once else done], runner.start)

    def add(self, runner: Runner, part: Part, evaluation: Evaluation) -> None:
        """Take in what a candidate's next items gave."""
        if not evaluation.ok:
            runner.ended = replace(evaluation, race=runner.decided)  # gone on with, others race as they did
            return
        runner.add(part, evaluation)
        if self.by_generation:  # otherwise what is known by now depends on who was faster
            runner.steps.append(runner.estimates(self.knowledge)[self.objective.name].value)
        elif self.pruning is not None:
            runner.steps.append(self.pruning.value(runner.items, runner.plain))

    def beaten(self, runner: Runner) -> bool:
        """Whether a candidate that is not compared with its generation is scored on no more."""
        if self.pruning is not None:
            assert runner.known is not None
            return self.pruning.prunes(runner.candidate.id, runner.steps, runner.items, runner.known)
        if runner.opponent is None:
            return False
        return self.knowledge.worse(runner.items, runner.opponent, self.settings.confidence)

    def evaluation(self, runner: Runner) -> Evaluation:
        """What a candidate is told as."""
        if runner.ended is not None:
            return runner.ended
        found = runner.joined(runner.estimates(self.knowledge), self.total, pruned=not self.over(runner))
        for name, value in found.objectives.items():
            if not math.isfinite(value):  # of all items there may be no logarithm, where of some there was
                return replace(found, status="failed", objectives={}, error=f"objective {name} is {value}")
        return found

    def gain(self, runner: Runner, step: int) -> float:
        """What decides about a candidate after a step, larger is better; below all others where it has failed."""
        if runner.ended is not None:  # of an earlier session, or failed
            value = runner.ended.race.get(f"step/{step}")
            return -math.inf if value is None else self.objective.gain(value)
        return self.objective.gain(runner.steps[step]) if step < len(runner.steps) else -math.inf

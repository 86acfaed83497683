"""Candidates in flight that are scored on some items first, and on more where that may pay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evomerge.candidate import Candidate, Evaluation, Part
from evomerge.objectives import Objective
from evomerge.protocols import Evaluator, Strategy
from evomerge.search.in_flight import PendingEvaluations
from evomerge.search.incumbent import Incumbent
from evomerge.search.racing.joined import Runner
from evomerge.search.racing.knowledge import Knowledge
from evomerge.search.racing.opponents import Opponent, opponent
from evomerge.search.racing.parts import ItemOrder
from evomerge.search.racing.ranking import ranked
from evomerge.search.racing.settings import Racing, counted

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

    from evomerge.search.racing.pruning import Pruning

NOBODY = -1


class Race:
    """What races of a search have in common: the items' order, the steps, and what is known of the items.

    Args:
        settings: of the user's.
        counts: items of each task.
        knowledge: of the items.
        objectives: of the fitness; the first decides.
        seed: of the order.
        pruner: of Optuna's, where that is whom candidates are against.

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
    ) -> None:
        self.settings, self.knowledge, self.objective = settings, knowledge, objectives[0]
        self.total = sum(counts.values())
        self.steps = settings.steps(self.total)
        self._counts, self._seed = dict(counts), seed
        self._order: ItemOrder | None = None
        self.pruning: Pruning | None = None
        if pruner is not None:
            from evomerge.search.racing.pruning import Pruning

            steps = counted(self.steps, self.total)
            self.pruning = Pruning(pruner, self.objective, steps, knowledge.estimator)

    def forget(self) -> None:
        """Know nothing of any model."""
        self.knowledge.forget()
        if self.pruning is not None:
            self.pruning.forget()

    def see(self, evaluation: Evaluation, *, baseline: bool = False) -> None:
        """Take in an evaluation of the search's items, in the order of the ledger."""
        self.knowledge.see(evaluation, baseline=baseline)
        if self.pruning is not None:
            self.pruning.see(evaluation, baseline=baseline)

    @property
    def by_generation(self) -> bool:
        """Whether the candidates of a generation are compared with each other."""
        return self.settings.against == "generation" and len(self.steps) > 1

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
            self._order = ItemOrder(self._counts, self._seed, self.knowledge.order(self._counts))
        done = runner.done
        first = self.steps[done - 1] if done else 0.0
        return self._order.part(runner.start + first, runner.start + self.steps[-1 if runner.at_once else done])

    def add(self, runner: Runner, part: Part, evaluation: Evaluation) -> None:
        """Take in what a candidate's next items gave."""
        if not evaluation.ok:
            runner.ended = evaluation
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


class RacedEvaluations(PendingEvaluations):
    """Candidates in flight of a search that races.

    Against a generation: all that were asked before the first is waited for are one; none is told before the race is
    over. Otherwise each candidate has an opponent, the one to be beaten when it was asked, or a pruner that knows those
    told by then: what is decided about it does not depend on when others arrive.

    Args:
        evaluator, split, ordered: as for `PendingEvaluations`.
        race: the rules.
        bar: by candidate the one that it must beat, ``None`` where there is none.
        at_once: which candidates are scored on as many items as the best at once.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        ordered: bool,
        race: Race,
        bar: Opponent,
        at_once: Callable[[Candidate], bool] = lambda candidate: False,
    ) -> None:
        super().__init__(evaluator, "search", ordered=ordered)
        self._race, self._bar, self._at_once = race, bar, at_once
        self._runners: dict[int, Runner] = {}
        self._parts: dict[int, Part] = {}  # of those with the evaluator
        self._step = 0  # of the generation
        self._shown: dict[int, float] = {}

    def submit(self, candidate: Candidate, refused: str | None = None, against: int | None = None) -> None:
        """Send a candidate to be scored on its first items.

        Args:
            candidate, refused: as for `PendingEvaluations`.
            against: of a search that is gone on with, whom it must beat (`NOBODY`: there is none), or how many trials
                a pruner compares it with.
        """
        if refused is not None:
            super().submit(candidate, refused)
            return
        self._waiting[candidate.id] = candidate
        runner = Runner(candidate, 0.0, at_once=self._at_once(candidate))
        if self._race.by_generation:
            self._runners[candidate.id] = runner  # begun when all of its generation are there
            return
        runner.start = self._race.start(candidate.id, 1, runner.at_once)
        if self._race.settings.against == "incumbent":
            number = self._bar(candidate) if against is None else against
            self.against[candidate.id] = NOBODY if number is None else number
            runner.opponent = self._race.knowledge.items(self.against[candidate.id])
        elif self._race.pruning is not None:
            runner.known = self.against[candidate.id] = self._race.pruning.told if against is None else against
        self._runners[candidate.id] = runner
        self._send(runner)

    @property
    def settled(self) -> bool:
        """Whether a search can be gone on with from here: no generation is told in part."""
        return not (self._race.by_generation and self._arrived)

    @property
    def expects_result(self) -> bool:
        """Whether `next_result` has something to return, or to wait for: once stopped, no race goes on."""
        return bool(self._waiting) and (not self._stopped or self._ready)

    def step(self) -> bool:
        """Wait for one part to be scored, unless `next_result` has something to return; whether it has."""
        if self._race.by_generation and not self._parts and self._runners and not self._ready_generation():
            self._begin_generation()
        if not self._ready and self._parts:
            evaluation = self._evaluator.collect()
            self._take(evaluation)
        return self._ready

    def next_result(self) -> tuple[Candidate, Evaluation]:
        """The next candidate to tell, and its evaluation, told from what is known by now."""
        while not self.step():
            pass
        number = next(iter(self._waiting if self._ordered else self._arrived))
        candidate, evaluation = self._waiting.pop(number), self._arrived.pop(number)
        runner = self._runners.pop(number, None)
        self.against.pop(number, None)
        if runner is not None and not self._race.by_generation:  # of what was told while it waited for its turn
            evaluation = self._race.evaluation(runner)
        return candidate, evaluation

    def shown(self, evaluation: Evaluation) -> Evaluation:
        """What strategies are told: an estimate as a score, of those pruned none above those that went on."""
        value = self._shown.pop(evaluation.candidate, None)
        name = self._race.objective.name
        objectives = evaluation.objectives if value is None else {**evaluation.objectives, name: value}
        status = "ok" if evaluation.status == "pruned" else evaluation.status
        return replace(evaluation, status=status, objectives=objectives)

    @property
    def _ready(self) -> bool:
        if self._race.by_generation and self._runners and not self._ready_generation():
            return False
        return (next(iter(self._waiting), None) in self._arrived) if self._ordered else bool(self._arrived)

    def _ready_generation(self) -> bool:
        """Whether the race of the generation in flight is over."""
        return all(number in self._arrived for number in self._runners)

    def _send(self, runner: Runner) -> None:
        if self._stopped:
            return
        part = self._race.part(runner)
        self._parts[runner.candidate.id] = part
        self._sent.add(runner.candidate.id)
        self._evaluator.submit(replace(runner.candidate, part=part), self._split)

    def _begin_generation(self) -> None:
        first = next(iter(self._waiting))
        self._step = 0
        for runner in self._runners.values():
            runner.start = self._race.start(first, len(self._waiting), runner.at_once)
            self._send(runner)

    def _take(self, evaluation: Evaluation) -> None:
        """Take in what arrived, and decide what it decides."""
        number = evaluation.candidate
        self._sent.discard(number)
        runner, part = self._runners[number], self._parts.pop(number)
        if evaluation.race:  # told in an earlier session: its race is over
            runner.ended = evaluation
        else:
            self._race.add(runner, part, evaluation)
        if self._race.by_generation:
            if not self._parts:
                self._next_step()
        elif runner.ended is not None or self._race.over(runner) or self._race.beaten(runner):
            self._arrived[number] = evaluation
        else:
            self._send(runner)

    def _next_step(self) -> None:
        """All of a generation that go on have been scored on the same items: choose those that go on still."""
        gain = self._race.gain
        alive = [r for r in self._runners.values() if gain(r, self._step) > -math.inf and not r.at_once]
        self._step += 1
        if alive and self._step < len(self._race.steps):
            count = max(1, math.ceil(len(alive) * self._race.settings.keep))
            by_gain = sorted(alive, key=lambda r: -gain(r, self._step - 1))  # equals in the order asked
            for runner in by_gain[:count]:
                if runner.ended is None:
                    self._send(runner)
            if self._parts:
                return
            if any(r.ended is not None and f"step/{self._step}" in r.ended.race for r in by_gain[:count]):
                self._next_step()
                return
        self._end_generation()

    def _end_generation(self) -> None:
        evaluations = {number: self._race.evaluation(runner) for number, runner in self._runners.items()}
        self._arrived |= evaluations
        self._shown = ranked(evaluations, self._race.objective)


def pending_of(
    evaluator: Evaluator, ordered: bool, race: Race | None, strategy: Strategy, incumbent: Incumbent
) -> PendingEvaluations:
    """What keeps candidates in flight, with a race or without."""
    if race is None:
        return PendingEvaluations(evaluator, "search", ordered=ordered)
    at_once: Callable[[Candidate], bool] = getattr(strategy, "at_once", lambda candidate: False)
    return RacedEvaluations(evaluator, ordered=ordered, race=race, bar=opponent(strategy, incumbent), at_once=at_once)

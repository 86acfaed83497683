"""Candidates in flight of a search that races: what each is scored on next, and when it is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from evomerge.candidate import Candidate, Evaluation, Part
from evomerge.objectives import Objective
from evomerge.protocols import Evaluator, Strategy
from evomerge.search.in_flight import PendingEvaluations
from evomerge.search.incumbent import Incumbent
from evomerge.search.racing.cheap import ordered_below
from evomerge.search.racing.joined import Runner
from evomerge.search.racing.opponents import Opponent, opponent
from evomerge.search.racing.race import Race

NOBODY = -1


class RacedEvaluations(PendingEvaluations):
    """Candidates in flight of a search that races.

    Against a generation: all that were asked before the first is waited for are one; none is told before the race is
    over. Otherwise each candidate has an opponent, the one to be beaten when it was asked, or a pruner that knows those
    told by then: what is decided about it does not depend on when others arrive.

    Args:
        evaluator, split, ordered: as for `PendingEvaluations`.
        race: the rules.
        bar: by candidate the one that it must beat, ``None`` where there is none.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        ordered: bool,
        race: Race,
        bar: Opponent,
    ) -> None:
        super().__init__(evaluator, "search", ordered=ordered)
        self._race, self._bar = race, bar
        self._runners: dict[int, Runner] = {}
        self._parts: dict[int, Part | None] = {}  # of those with the evaluator; ``None`` on the cheap rung
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
        runner = Runner(candidate, 0.0)
        if self._race.by_generation:
            self._runners[candidate.id] = runner  # begun when all of its generation are there
            return
        runner.start = self._race.start(candidate.id, 1)
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

    def _send_to_rung(self, runner: Runner) -> None:
        if self._stopped:
            return
        self._parts[runner.candidate.id] = None
        self._sent.add(runner.candidate.id)
        self._evaluator.submit(runner.candidate, "cheap")

    def _begin_generation(self) -> None:
        first = next(iter(self._waiting))
        self._step = 0
        for runner in self._runners.values():
            runner.start = self._race.start(first, len(self._waiting))
            if self._race.cheap is None:
                self._send(runner)
            else:
                self._send_to_rung(runner)

    def _take(self, evaluation: Evaluation) -> None:
        """Take in what arrived, and decide what it decides."""
        number = evaluation.candidate
        self._sent.discard(number)
        runner, part = self._runners[number], self._parts.pop(number)
        if evaluation.race:  # told in an earlier session: its race is over
            runner.ended = evaluation
        elif part is None:
            assert self._race.cheap is not None
            self._race.cheap.add(runner, evaluation)
        else:
            self._race.add(runner, part, evaluation)
        if self._race.by_generation:
            if not self._parts:
                self._first_step() if part is None else self._next_step()
        elif runner.ended is not None or runner.done == len(self._race.steps) or self._race.beaten(runner):
            self._arrived[number] = evaluation
        else:
            self._send(runner)

    def _first_step(self) -> None:
        """All of a generation have been on the cheap rung: those that go on are scored on their first items."""
        assert self._race.cheap is not None
        for runner in self._race.cheap.going_on(self._runners.values()):
            if runner.ended is None:
                self._send(runner)
        if not self._parts:
            self._next_step()

    def _next_step(self) -> None:
        """All of a generation that go on have been scored on the same items: choose those that go on still."""
        alive = [r for r in self._runners.values() if self._race.gain(r, self._step) > -math.inf]
        self._step += 1
        if alive and self._step < len(self._race.steps):
            count = max(1, math.ceil(len(alive) * self._race.settings.keep))
            by_gain = sorted(alive, key=lambda r: -self._race.gain(r, self._step - 1))  # equals in the order asked
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
        race = self._race
        evaluations = {
            number: race.evaluation(runner)
            for number, runner in self._runners.items()
            if runner.ended is not None or runner.done
        }
        if race.cheap is not None:
            evaluations |= race.cheap.fallen(self._runners, evaluations, race.total)
        self._arrived |= evaluations
        self._shown = ranked(evaluations, race.objective, race.cheap.decides if race.cheap is not None else None)


def pending_of(
    evaluator: Evaluator, ordered: bool, race: Race | None, strategy: Strategy, incumbent: Incumbent
) -> PendingEvaluations:
    """What keeps candidates in flight, with a race or without."""
    if race is None:
        return PendingEvaluations(evaluator, "search", ordered=ordered)
    return RacedEvaluations(evaluator, ordered=ordered, race=race, bar=opponent(strategy, incumbent))


def ranked(
    evaluations: Mapping[int, Evaluation], objective: Objective, cheap: Objective | None = None
) -> dict[int, float]:
    """By candidate the value of an objective such that none who was scored on less is above one who went on.

    Those that fell on the cheap rung are below all others, in the order of its scores by its objective `cheap`.

    An estimate from few items is the more often too high the more there are of them: without this, those that lost
    their race would rank above the winners.
    """
    by_steps: dict[int, list[int]] = {}
    fallen = {n: e for n, e in evaluations.items() if cheap is not None and e.objectives and not e.race.get("items")}
    for number, evaluation in evaluations.items():
        if evaluation.objectives and number not in fallen:
            steps = sum(name.startswith("step/") for name in evaluation.race)
            by_steps.setdefault(steps, []).append(number)
    found: dict[int, float] = {}
    ceiling = math.inf
    for steps in sorted(by_steps, reverse=True):
        gains = {n: objective.gain(evaluations[n].objectives[objective.name]) for n in by_steps[steps]}
        for number, gain in gains.items():
            found[number] = objective.gain(min(gain, ceiling))
        ceiling = min(ceiling, *gains.values())
    return found if cheap is None else found | ordered_below(fallen, ceiling, cheap, objective)

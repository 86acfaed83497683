"""The cheap rung of a race: another fitness, which costs little, says who of a generation is scored at all."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace

from evomerge.candidate import Evaluation
from evomerge.objectives import Objective
from evomerge.search.racing.joined import Runner

_MOST = 500  # models that the line is laid through: those told last
FELL = "fell on the cheap rung"


class CheapRung:
    """Lets the best of a generation go on by the scores of another fitness, and estimates what the others would have.

    The estimate is that of the least-squares line through what is known: of each candidate that went on, its score here
    and the first objective that it was told with. All follows from the evaluations in the ledger, so that a search that
    is gone on with decides and estimates as it would have.

    Args:
        keep: share of a generation that goes on.
        decides: the objective of the other fitness.
        objective: the first of the search's fitness.
    """

    def __init__(self, keep: float, decides: Objective, objective: Objective) -> None:
        self.keep, self.decides, self._objective = keep, decides, objective
        self._known: deque[tuple[float, float]] = deque(maxlen=_MOST)

    def forget(self) -> None:
        """Know nothing of any model."""
        self._known.clear()

    def see(self, evaluation: Evaluation) -> None:
        """Take in an evaluation of the search, in the order of the ledger."""
        point = self._point(evaluation)
        if point is not None:
            self._known.append(point)

    def add(self, runner: Runner, evaluation: Evaluation) -> None:
        """Take in what a candidate came to here."""
        if not evaluation.ok:
            runner.ended = replace(evaluation, split="search", seconds=_as_stage(evaluation.seconds))
            return
        runner.cheap = evaluation.objectives[self.decides.name]
        runner.rung = replace(evaluation, seconds=_as_stage(evaluation.seconds))

    def going_on(self, runners: Iterable[Runner]) -> list[Runner]:
        """The best of a generation, of those that have a score here; of equals those that were asked first."""
        gains = [(gain, runner) for runner in runners if (gain := self._gain(runner)) is not None]
        count = max(1, math.ceil(len(gains) * self.keep))
        return [runner for _, runner in sorted(gains, key=lambda pair: -pair[0])[:count]]

    def fallen(
        self, runners: Mapping[int, Runner], others: Mapping[int, Evaluation], total: int
    ) -> dict[int, Evaluation]:
        """What those are told as that fell here.

        Args:
            runners: of a generation whose race is over, by candidate.
            others: the evaluations of those that did not fall, or had been told before.
            total: items of the fitness.
        """
        points = [*self._known, *filter(None, map(self._point, others.values()))]
        found = {}
        for number, runner in runners.items():
            if number in others:
                continue
            assert runner.cheap is not None
            assert runner.rung is not None
            race = {"items": 0.0, "of": float(total), "cheap": runner.cheap}
            seconds, merge = runner.rung.seconds, runner.rung.merge
            told = Evaluation(number, "pruned", race=race, seconds=seconds, merge=merge, error=FELL)
            value = on_line(points, runner.cheap)
            if math.isfinite(value):
                found[number] = replace(told, objectives={self._objective.name: value})
            else:
                found[number] = replace(told, status="failed", error=f"{FELL}, and nobody who went on has a score")
        return found

    def _gain(self, runner: Runner) -> float | None:
        """Its score here, larger is better; ``None`` where it has none."""
        score = runner.cheap if runner.ended is None else runner.ended.race.get("cheap")
        return None if score is None else self.decides.gain(score)

    def _point(self, evaluation: Evaluation) -> tuple[float, float] | None:
        """What an evaluation says of scores here and there; ``None`` for nothing."""
        cheap, value = evaluation.race.get("cheap"), evaluation.objectives.get(self._objective.name)
        return None if cheap is None or value is None or not evaluation.race.get("items") else (cheap, value)


def on_line(points: Iterable[tuple[float, float]], at: float) -> float:
    """What the least-squares line through points has at a place; their mean where they have one place only.

    Returns NaN for no points.
    """
    known = list(points)
    if not known:
        return math.nan
    middle = math.fsum(x for x, _ in known) / len(known)
    level = math.fsum(y for _, y in known) / len(known)
    spread = math.fsum((x - middle) ** 2 for x, _ in known)
    together = math.fsum((x - middle) * (y - level) for x, y in known)
    return level + (together / spread * (at - middle) if spread > 0 else 0.0)


def ordered_below(
    fallen: Mapping[int, Evaluation], ceiling: float, decides: Objective, objective: Objective
) -> dict[int, float]:
    """By candidate the value of an objective with which those that fell stand below a ceiling, as their scores say.

    A strategy that looks at ranks is told those of the cheap rung, also where the line is flat or falls; those with one
    score have one value.

    Args:
        fallen: evaluations with a ``cheap`` score in `Evaluation.race`, and an objective that is an estimate.
        ceiling: of gains.
        decides: the objective of the cheap rung.
        objective: that which is told.
    """
    found: dict[int, float] = {}
    before: tuple[float, float] | None = None  # the cheap gain and the gain of the one above
    scored = [(decides.gain(evaluation.race["cheap"]), number) for number, evaluation in fallen.items()]
    for cheap, number in sorted(scored, key=lambda pair: -pair[0]):
        if before is not None and before[0] == cheap:
            gain = before[1]
        else:
            most = math.nextafter(ceiling if before is None else before[1], -math.inf)
            gain = min(objective.gain(fallen[number].objectives[objective.name]), most)
        before = cheap, gain
        found[number] = objective.gain(gain)
    return found


def _as_stage(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage, where all but those of merging are the rung's."""
    own = {name: value for name, value in seconds.items() if name in ("merge", "note")}
    return {**own, "cheap": math.fsum(value for name, value in seconds.items() if name not in own)}

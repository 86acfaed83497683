"""One candidate's evaluation, joined from those of parts of its items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evomerge.candidate import Candidate, Evaluation, Items, Part
from evomerge.protocols import Estimate
from evomerge.search.racing.knowledge import Knowledge
from evomerge.search.racing.parts import join, size


@dataclass
class Runner:
    """A candidate in a race.

    Attributes:
        candidate: it.
        start: where its items begin in the order of all, as a share.
        opponent: the values of whom it must beat, item by item.
        part: the items that it was scored on.
        items: their values; NaN where an item was not run.
        known: how many trials a pruner compares it with.
        steps: what decided about it after each step against its generation, or what a pruner was told of it: estimates
            of the first objective.
        ended: its evaluation, where it is over: of an earlier session, or failed.
        cheap: its score on the cheap rung; ``None`` where there is none, or not yet.
        rung: the evaluation there, of which seconds and merges count.
    """

    candidate: Candidate
    start: float
    opponent: Items | None = None
    known: int | None = None
    part: Part = field(default_factory=dict)
    items: Items = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    ended: Evaluation | None = None
    cheap: float | None = None
    rung: Evaluation | None = None
    _parts: list[tuple[int, Evaluation]] = field(default_factory=list)
    _estimated: tuple[int, int, dict[str, Estimate]] | None = None

    def estimates(self, knowledge: Knowledge) -> dict[str, Estimate]:
        """By objective what all items would give; asked again, they are those of before until more is known.

        Args:
            knowledge: of the items.
        """
        known = self.done, knowledge.learnt
        if self._estimated is None or self._estimated[:2] != known:
            self._estimated = *known, knowledge.estimate(self.items, self.plain)
        return self._estimated[2]

    def add(self, part: Part, evaluation: Evaluation) -> None:
        """Take in the evaluation of a part."""
        self.part = join(self.part, part)
        self.items = joined_items(self.items, evaluation.items)
        self._parts.append((size(part), evaluation))

    @property
    def done(self) -> int:
        """How many steps it has been scored on."""
        return len(self._parts)

    @property
    def decided(self) -> dict[str, float]:
        """What decided about it so far, as `Evaluation.race` has it."""
        found = {f"step/{number}": value for number, value in enumerate(self.steps)}
        return found if self.cheap is None else {"cheap": self.cheap, **found}

    @property
    def plain(self) -> dict[str, float]:
        """The objectives of the parts, by their numbers of items."""
        return _mean([(count, evaluation.objectives) for count, evaluation in self._parts])

    def joined(self, estimates: Mapping[str, Estimate], total: int, pruned: bool) -> Evaluation:
        """The evaluation of all parts.

        Args:
            estimates: by objective.
            total: items of the fitness.
            pruned: whether others went on and it did not.
        """
        last = self._parts[-1][1]
        parts = [evaluation for _, evaluation in self._parts]
        spent = [*([self.rung] if self.rung is not None else []), *parts]
        count = size(self.part)
        race = {"items": float(count), "of": float(total), **self.decided}
        race |= {"known": float(self.known)} if self.known is not None else {}
        if count < total:
            race |= {f"error/{name}": e.error for name, e in estimates.items() if e.error == e.error}
        return replace(
            last,
            status="pruned" if pruned else "ok",
            objectives={name: estimate.value for name, estimate in estimates.items()},
            metrics=_mean([(own, evaluation.metrics) for own, evaluation in self._parts]),
            items=self.items,
            seconds=_sum([evaluation.seconds for evaluation in spent]),
            merge=_sum([evaluation.merge for evaluation in spent]),
            tokens=_sum([evaluation.tokens for evaluation in parts]),
            responses=_joined_responses(parts),
            race=race,
            error="" if not pruned else f"pruned after {count} of {total} items",
        )


def joined_items(first: Items, second: Items) -> Items:
    """Values of either, those of the first where both have one."""
    found = dict(first)
    for name, values in second.items():
        found[name] = np.where(np.isnan(found[name]), values, found[name]) if name in found else values
    return found


def _joined_responses(parts: Sequence[Evaluation]) -> dict[str, Sequence[str]]:
    found: dict[str, Sequence[str]] = {}
    for evaluation in parts:
        for task, texts in evaluation.responses.items():
            before = found.get(task, [""] * len(texts))
            found[task] = [old or new for old, new in zip(before, texts, strict=True)]
    return found


def _mean(parts: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    total = sum(count for count, _ in parts)
    names = dict.fromkeys(name for _, values in parts for name in values)
    return {name: sum(count * values.get(name, np.nan) for count, values in parts) / total for name in names}


def _sum(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for values in parts for name in values)
    return {name: sum(values.get(name, 0.0) for values in parts) for name in names}

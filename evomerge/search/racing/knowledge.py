"""What a search knows of its items: the values that models had, and the estimator that learns from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

from evomerge.candidate import Evaluation, Items
from evomerge.errors import FitnessError
from evomerge.objectives import Objective
from evomerge.protocols import Estimate, Estimator

_MOST = 500  # models that an estimator learns from: the pool's own, and those told last
_GROWTH = 1.1  # it learns again when it is to know so many times as many


class Knowledge:
    """Values of items by model, in the order in which they were told.

    What the estimator has learnt follows from how many models were told, so that a search that is gone on with
    estimates as it would have.

    Args:
        estimator: ``None`` where the fitness has none.
        objectives: of the fitness.

    Attributes:
        counts: items of each task, as the race says.
    """

    def __init__(self, estimator: Estimator | None, objectives: tuple[Objective, ...]) -> None:
        self.estimator, self._objectives = estimator, objectives
        self.counts: Mapping[str, int] = {}
        self.forget()

    def forget(self) -> None:
        """Know nothing."""
        self._models: dict[int, Items] = {}
        self._baselines: dict[int, Items] = {}
        self._told = self._due = self._fitted = self._revised_at = 0
        self._revised: dict[int, Estimate] = {}  # while nothing more is learnt
        self._order: Mapping[str, Sequence[int]] | None = None
        self._ordered = False

    def see(self, evaluation: Evaluation, *, baseline: bool = False) -> None:
        """Take in an evaluation of the search's items."""
        if evaluation.items and evaluation.objectives:
            (self._baselines if baseline else self._models)[evaluation.candidate] = evaluation.items
            self._told += 1
            self._due = self._told if self._told >= max(1, math.floor(self._due * _GROWTH)) else self._due
            if len(self._models) > _MOST:
                del self._models[next(iter(self._models))]

    @property
    def learnt(self) -> int:
        """How many models `estimate` knows: while this is the same, so are the estimates of the same values."""
        return self._due

    def items(self, candidate: int) -> Items | None:
        """The values that a candidate had, where they are still known."""
        return self._models.get(candidate, self._baselines.get(candidate))

    def order(self) -> Mapping[str, Sequence[int]] | None:
        """The order of items that the estimator prefers, from the pool's own models alone."""
        if self.estimator is not None and not self._ordered:
            self.estimator.fit(list(self._baselines.values()))
            self._fitted = 0
            self._order = self.estimator.order(self.counts)
        self._ordered = True
        return self._order

    def learn(self) -> None:
        """Let the estimator learn what it is due to."""
        self.order()  # by which it tells what it chose from what was drawn
        if self.estimator is not None and self._due > self._fitted:
            self._fitted = self._due
            behind = self._told - self._due
            models = list(self._models.values())
            self.estimator.fit([*self._baselines.values(), *models[: len(models) - behind]])

    def revised(self, numbers: Sequence[int]) -> list[Estimate | None]:
        """The first objective of candidates, by their ids, estimated with all that was told.

        ``None`` where their items are not known, or there is no estimator. The estimator has learnt from all of them:
        on the demo it tells others up to 0.012 lower, which would count against whatever is new. What is told after it
        is estimated with no less.
        """
        self._due = self._told
        known = {number: items for number in numbers if (items := self.items(number)) is not None}
        if self.estimator is None or not known:
            return [None] * len(numbers)
        self.learn()
        if self._revised_at != self._fitted:
            self._revised, self._revised_at = {}, self._fitted
        new = {number: items for number, items in known.items() if number not in self._revised}
        each: Callable[[Sequence[Items]], Sequence[Mapping[str, Estimate]]] | None
        each = getattr(self.estimator, "estimate_each", None)
        several = list(new.values())
        told = each(several) if each is not None else [self.estimator.estimate(items) for items in several]
        self._revised |= {number: of[self._objectives[0].name] for number, of in zip(new, told, strict=True)}
        return [self._revised[number] if number in known else None for number in numbers]

    def relearn(self, models: int) -> None:
        """Have learnt from so many models, of a search that is gone on with (`learnt`)."""
        self._due = models

    def estimate(self, items: Items, plain: Mapping[str, float]) -> dict[str, Estimate]:
        """By objective what all items would give.

        Args:
            items: values, NaN where an item was not run.
            plain: the objectives of those that were run, for a fitness without an estimator.
        """
        if self.estimator is None:
            return {name: Estimate(value, math.nan) for name, value in plain.items()}
        self.learn()
        return dict(self.estimator.estimate(items))

    def worse(self, items: Items, other: Items, confidence: float) -> bool:
        """Whether a model is surely worse than another in the first objective, on the items that both were run on."""
        if self.estimator is None:
            return False
        first = self._objectives[0]
        try:
            found = self.estimator.difference(items, other).get(first.name)
        except FitnessError:  # of some task they have no item in common
            return False
        if found is None or not (math.isfinite(found.value) and math.isfinite(found.error)):
            return False
        gain = first.gain(found.value)
        return gain + NormalDist().inv_cdf(confidence) * found.error < 0

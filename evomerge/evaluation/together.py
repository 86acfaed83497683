"""Several candidates at once: those that are adapters of the model that an engine holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import DeviceLostError, one_line
from evomerge.evaluation.outcomes import failure, require_finite, success
from evomerge.evaluation.residents import AdapterModels
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.models.loaded import LoadedModel
from evomerge.models.memory import device_lost, out_of_memory
from evomerge.protocols import Fitness, Scores
from evomerge.recipes.recipe import Recipe

_LOG = logging.getLogger(__name__)


@dataclass
class _Going:
    """A candidate on its way.

    Attributes:
        candidate: it.
        adapter: that it is.
        model: with the adapter loaded.
        count: what that took.
        start: when it began, by the clock of `time.perf_counter`.
    """

    candidate: Candidate
    adapter: Any
    start: float
    count: MergeCount
    model: LoadedModel | None = None


class TogetherScorer:
    """Scores candidates that are adapters at once, and says which are none.

    What one candidate does wrong is its own evaluation's: the others are scored. Where the engine fails with several of
    them, and of those that have no score among several, each is tried alone: NaN of one may have reached the others.

    Args:
        models: what loads adapters.
        plan: the plan of a recipe.
        scoring: entered while models are scored.
    """

    def __init__(
        self,
        models: AdapterModels,
        plan: Callable[[Recipe], Plan],
        scoring: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._models, self._plan, self._scoring = models, plan, scoring

    def evaluate(self, fitness: Fitness, candidates: Sequence[Candidate], split: Split) -> dict[int, Evaluation]:
        """The evaluations of those candidates that are adapters, by their places; the rest are to be merged.

        Args:
            fitness: one with a method ``run_together``.
            candidates: with recipes, or without, which are none.
            split: on which items.

        Raises:
            DeviceLostError: the engine failed.
            RuntimeError, MemoryError: there is no memory; nothing is lost by trying again.
        """
        found: dict[int, Evaluation] = {}
        going: dict[int, _Going] = {}
        for place, candidate in enumerate(candidates):
            if candidate.recipe is None:
                continue
            start = time.perf_counter()
            try:
                adapter = self._models.find(self._plan(candidate.recipe))
            except Exception as error:
                found[place] = failure(candidate, split, error, start)
                continue
            if adapter is not None:
                going[place] = _Going(candidate, adapter, start, MergeCount(seconds=time.perf_counter() - start))
        places = list(going)
        if places:
            self._models.begin()
        for first in range(0, len(places), self._models.at_once):
            group = {place: going[place] for place in places[first : first + self._models.at_once]}
            found |= self._scored(fitness, group, split)
        return found

    def _scored(self, fitness: Any, group: Mapping[int, _Going], split: Split) -> dict[int, Evaluation]:
        found: dict[int, Evaluation] = {}
        for place, own in group.items():
            try:
                own.model, count = self._models.load(own.adapter)
                own.count.add(count)
            except Exception as error:
                if out_of_memory(error):
                    raise
                found[place] = failure(own.candidate, split, error, own.start)
        rest = {place: own for place, own in group.items() if place not in found}
        if not rest:
            return found
        models, parts = [own.model for own in rest.values()], [own.candidate.part for own in rest.values()]
        try:
            with self._scoring():
                results: Sequence[Scores | Exception] = fitness.run_together(models, parts)
        except Exception as error:
            if out_of_memory(error):
                raise
            if isinstance(error, DeviceLostError) or device_lost(error) or len(rest) == 1:
                only = next(iter(rest.items()))
                found[only[0]] = failure(only[1].candidate, split, error, only[1].start)
                self._models.recover()
                return found
            _LOG.warning("%d candidates failed together, each is tried alone: %s", len(rest), one_line(error))
        else:
            told = [self._evaluation(own, split, result) for own, result in zip(rest.values(), results, strict=True)]
            found |= dict(zip(rest, told, strict=True))
            again = {place: own for place, own in rest.items() if not found[place].ok}
            if again:
                self._models.recover()
            rest = again if len(rest) > 1 else {}
        for place, own in rest.items():  # out of the handler, which holds on to the frames of the error
            self._models.begin()
            found |= self._scored(fitness, {place: own}, split)
        return found

    def _evaluation(self, own: _Going, split: Split, result: Scores | Exception) -> Evaluation:
        try:
            if isinstance(result, Exception):
                raise result
            require_finite(result)
        except Exception as error:
            return failure(own.candidate, split, error, own.start)
        seconds = {"merge": own.count.seconds, "model": 0.0, "other": 0.0, **result.seconds}
        return success(own.candidate.id, split, result, seconds, own.count)

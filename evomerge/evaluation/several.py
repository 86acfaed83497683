"""Candidates that are one model and terms of low rank, scored at once: the common weights are run once for all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from evomerge.candidate import Candidate, Evaluation, Part, Split
from evomerge.errors import DeviceLostError, EvomergeError, FitnessError, one_line
from evomerge.evaluation.outcomes import require_finite, success
from evomerge.evaluation.residents import Held
from evomerge.merge.adapters.at_once import AtOnce, Terms
from evomerge.merge.adapters.common import Commons, Departure
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.models.memory import device_lost, lost, out_of_memory
from evomerge.models.pool import Pool
from evomerge.protocols import Fitness, Scores
from evomerge.recipes.recipe import Recipe

_LOG = logging.getLogger(__name__)
_NOTHING: Terms = {}


@dataclass
class Group:
    """Candidates with one common model.

    Attributes:
        common: its recipe.
        members: the candidates.
        terms: of each what it adds to the common model.
    """

    common: Recipe
    members: list[Candidate] = field(default_factory=list)
    terms: list[Terms] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What came of one of several candidates.

    Attributes:
        scores: what the fitness says, or why it says nothing.
        merging, scoring: its share of the seconds.
        count: of merges; those of the common model are the first candidate's.
    """

    scores: Scores | FitnessError
    merging: float
    scoring: float
    count: MergeCount


class SeveralCandidates:
    """Scores groups of candidates at once.

    Args:
        pool: the source models.
        resident: the worker's model, a module.
    """

    def __init__(self, pool: Pool, resident: Held) -> None:
        self._resident, self._commons = resident, Commons(pool)
        self._most: int | None = None  # at once, since memory ended
        self._pool = pool

    def groups(self, candidates: Sequence[Candidate], plan_of: Callable[[Recipe], Plan]) -> list[Group]:
        """Candidates of two or more that have a model in common.

        Args:
            candidates: to be scored on the same items.
            plan_of: plans a recipe; those that it refuses are in no group.
        """
        known: list[tuple[Candidate, Recipe, Departure | None]] = []
        for candidate in candidates:
            recipe = candidate.recipe
            if recipe is None:
                continue
            with suppress(EvomergeError):  # said when it is evaluated by itself
                known.append((candidate, recipe, self._commons.of(recipe, plan_of(recipe))))
        found = {own.common.hash: Group(own.common) for _, _, own in known if own is not None}
        for candidate, recipe, own in known:
            if recipe.hash in found:  # the common model itself, which may be a step from another
                group, terms = found[recipe.hash], _NOTHING
            elif own is not None:
                group, terms = found[own.common.hash], own.terms
            else:
                continue
            group.members.append(candidate)
            group.terms.append(terms)
        return [group for group in found.values() if len(group.members) > 1]

    def run(self, group: Group, fitness: Fitness, split: Split) -> dict[int, Evaluation]:
        """Score a group; those that are missing of what is returned are to be scored by themselves.

        Args:
            group: the candidates.
            fitness: prepared.
            split: of its items.

        Raises:
            DeviceLostError: the GPU failed.
        """
        found: dict[int, Evaluation] = {}
        plan, part = make_plan(group.common, self._pool), group.members[0].part
        waiting = [range(len(group.members))]
        while waiting:
            own = waiting.pop()
            size = self._most or len(own)
            if len(own) > size:
                waiting += [own[first : first + size] for first in range(0, len(own), size)]
                continue
            try:
                outcomes = self._at_once([(group.members[i], group.terms[i]) for i in own], plan, fitness, part)
                found |= {number: _evaluation(number, split, outcome) for number, outcome in outcomes.items()}
                continue
            except DeviceLostError:
                raise
            except Exception as error:
                if device_lost(error):
                    raise lost(error) from error
                if not out_of_memory(error) or len(own) == 1:
                    _LOG.warning("%d candidates could not be scored at once: %s", len(own), one_line(error))
                    return found
            # Out of the handler, which holds on to the frames of the error.
            if not self._resident.spare_memory():
                self._most = len(own) // 2
                _LOG.warning("not enough memory: %d candidates are scored at once from now on", self._most)
            waiting.append(own)
        return found

    def _at_once(
        self, members: Sequence[tuple[Candidate, Terms]], plan: Plan, fitness: Fitness, part: Part | None
    ) -> dict[int, Outcome]:
        start = time.perf_counter()
        count = self._resident.apply(plan)
        # Hidden states are the common model's.
        model = replace(self._resident.model, states=None)
        at_once = AtOnce(model.module, [terms for _, terms in members])
        merging = time.perf_counter() - start
        with at_once.installed():
            scores = _scores(fitness, model, at_once, part)
        scoring, share = time.perf_counter() - start - merging, 1 / len(members)
        none = MergeCount(kept=len(plan.slices), bytes=count.bytes)
        return {
            candidate.id: Outcome(own, merging * share, scoring * share, none if number else count)
            for number, ((candidate, _), own) in enumerate(zip(members, scores, strict=True))
        }


def _scores(fitness: Any, model: Any, at_once: AtOnce, part: Part | None) -> list[Scores | FitnessError]:
    if hasattr(fitness, "run_several"):
        return list(fitness.run_several(model, at_once, part))
    found: list[Scores | FitnessError] = []
    for number in range(at_once.count):
        with at_once.only(number):
            try:
                found.append(fitness.run(model, *(() if part is None else (part,))))
            except EvomergeError as error:
                found.append(error if isinstance(error, FitnessError) else FitnessError(str(error)))
    return found


def _evaluation(candidate: int, split: Split, outcome: Outcome) -> Evaluation:
    """What `Worker.evaluate` would say."""
    scores, seconds = outcome.scores, {"merge": outcome.merging, "model": 0.0, "other": outcome.scoring}
    blank = Evaluation(candidate, "failed", split, seconds=seconds)
    if not isinstance(scores, FitnessError):
        try:
            require_finite(scores)
        except FitnessError as error:
            scores = error
    if isinstance(scores, FitnessError):
        return replace(blank, error=one_line(scores))
    model = scores.seconds.get("model", outcome.scoring)
    seconds = {"merge": outcome.merging, "model": model, "other": max(0.0, outcome.scoring - model)}
    return success(candidate, split, scores, seconds, outcome.count)

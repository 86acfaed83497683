"""A worker: one resident model and its fitnesses, evaluating one candidate at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch

from evomerge.candidate import Candidate, Evaluation, Part, Split
from evomerge.errors import NoMemoryError, one_line
from evomerge.evaluation.batch_norms import BatchNorms
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.devices import await_memory, choose_device
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.evaluation.outcomes import failure, require_finite, success
from evomerge.evaluation.references import references
from evomerge.evaluation.residents import adapter_models_of, hold
from evomerge.evaluation.several import SeveralCandidates
from evomerge.evaluation.together import TogetherScorer
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.merge.resident.model import Resident
from evomerge.merge.resident.spread import SPREAD
from evomerge.models.loaded import LoadedModel
from evomerge.models.memory import Retries, device_lost, give_back, lost, no_room, out_of_memory
from evomerge.models.pool import Pool
from evomerge.protocols import Fitness, Scores
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.switches import switch_of, task_recipe, tasks_of

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_PLANS = 64  # of recipes that were scored last: a generation's
_TRIES = 6  # of a candidate that finds no memory: what is kept becomes less each time

Stage = tuple[str, int, int]
"""As `Work.stage`, `Work.done` and `Work.slices`."""


class Worker:
    """Opens the pool once, builds the model once, tokenises the items once; then only changes slices.

    Args:
        pool: the source models.
        fitnesses: by split; one that is never asked for is never prepared.
        device: where the resident model lives; ``auto`` chooses.
        threads: CPU threads of torch, process-wide; ``None`` leaves them.
        cache: what to keep of merged slices.
        engine: what scores models; the resident model itself by default.

    Raises:
        ConfigError: vLLM cannot be started.
        EngineError: vLLM computes something else than transformers.
        ServerError: a server cannot be used.
    """

    def __init__(
        self,
        pool: Pool,
        fitnesses: Mapping[Split, Fitness],
        *,
        device: str = "auto",
        threads: int | None = None,
        cache: CacheSettings | None = None,
        engine: EngineSettings | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._pool = pool
        self._fitnesses = dict(fitnesses)
        settings, engine = cache or CacheSettings(), engine or EngineSettings()
        device = "cpu" if engine.is_server else device if settings.group else choose_device(device)
        if not settings.group:  # whose GPUs other processes have, which waited
            await_memory(device)
        try:
            self._engine = engine
            self._resident = hold(pool, device, settings, engine)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise no_room(error, "for the model", torch.device("cuda" if device == SPREAD else device)) from None
        self._prepared: set[Split] = set()
        self._scoring = False
        in_one = isinstance(self._resident, Resident) and device != SPREAD
        self._several = SeveralCandidates(pool, self._resident) if in_one else None
        self._plans: dict[int, tuple[Recipe, Plan]] = {}  # by identity of the recipe, the last used behind
        self._batch_norms = BatchNorms(pool, self._fitnesses.get("search"))

    def fitness(self, split: Split) -> Fitness:
        """The fitness of a split, its items built for this worker's model."""
        if split not in self._prepared and any(self._fitnesses[s] is self._fitnesses[split] for s in self._prepared):
            self._prepared.add(split)
        if split not in self._prepared:
            try:
                self._with_room(lambda: self._prepare(self._fitnesses[split]), f"to prepare {split} items")
            except Exception as error:
                if device_lost(error):
                    raise lost(error) from error
                raise
            self._prepared.add(split)
        return self._fitnesses[split]

    def fingerprint(self, split: Split) -> str:
        """The fingerprint of a split's fitness, and of what weights are quantised to when it scores."""
        found = self.fitness(split).fingerprint()
        return f"{found} {self._engine.quantise}" if self._engine.quantises(split) else found

    def _prepare(self, fitness: Fitness) -> None:
        """Prepare a fitness, and show it the models that it compares with: the resident model becomes each of them."""
        names = references(fitness, self._pool.info)
        fitness.prepare(self._resident.model)
        self._resident.full = not self._engine.quantises("held_out")
        for name in names:
            self._resident.apply(make_plan(self._pool.info.linear({name: 1.0}), self._pool))
            referring: Any = fitness
            referring.refer(self._resident.model, name)

    def stage(self) -> Stage:
        """What it is at, and the slices of a merge that are done, of how many; another thread may ask."""
        progress = self._resident.progress
        if self._scoring:
            return "scoring", progress.done, progress.slices
        return progress.doing, progress.done, progress.slices

    def evaluate(self, candidate: Candidate, split: Split = "search") -> Evaluation:
        """Merge and score one candidate. Whatever the candidate does wrong becomes the evaluation's status.

        Raises:
            PoolError: a source file is not what it was, which is not the candidate's fault.
            FitnessError: the fitness cannot be prepared: the same.
            DeviceLostError: the GPU or the engine failed: no candidate can be evaluated in this process any more.
        """
        return self.evaluate_together([candidate], split)[0]

    def evaluate_together(self, candidates: Sequence[Candidate], split: Split = "search") -> list[Evaluation]:
        """`evaluate` several candidates, in order; at once those that are one model and terms of low rank.

        These are adapters of the model that an engine has, or adapters of one base and perturbations of one model that
        a module scores in one forward; equal to one at a time up to rounding. What fails for one fails for it alone.

        Raises:
            PoolError, FitnessError, DeviceLostError: as for `evaluate`.
        """
        fitness = self.fitness(split)
        if self._batch_norms.computed:
            self.fitness("search")  # before a model is merged: preparing it may change the model
        self._pool.require_unchanged()
        models, found = adapter_models_of(self._resident), dict[int, Evaluation]()
        if models is not None and hasattr(fitness, "run_together"):
            scorer = TogetherScorer(models, self._plan, self._scores)
            own = [replace(c, recipe=None) if self._is_switched(c, fitness) else c for c in candidates]
            start, failed = time.perf_counter(), None
            try:
                found = self._with_room(lambda: scorer.evaluate(fitness, own, split), "to score candidates together")
            except NoMemoryError as error:
                failed = error.with_traceback(None)
            if failed is not None and len(candidates) == 1:
                return [failure(candidates[0], split, failed, start)]
            if failed is not None:
                return [self.evaluate(candidate, split) for candidate in candidates]
        elif len(candidates) > 1:
            found = self._in_one_module(candidates, fitness, split)
        return [found.get(n) or self._merged(candidate, fitness, split) for n, candidate in enumerate(candidates)]

    def _in_one_module(self, candidates: Sequence[Candidate], fitness: Fitness, split: Split) -> dict[int, Evaluation]:
        """The evaluations of those that are scored in one forward, by their places."""
        several, part = self._several, candidates[0].part
        alike = all(own.part == part for own in candidates)
        if several is None or self._batch_norms.computed or self._engine.quantises(split) or not alike:
            return {}
        self._resident.full = True
        places = {own.id: place for place, own in enumerate(candidates)}
        plain = [own for own in candidates if own.recipe is not None and not self._is_switched(own, fitness)]
        found: dict[int, Evaluation] = {}
        for group in several.groups(plain, self._plan):
            with self._scores():
                found |= {places[number]: own for number, own in several.run(group, fitness, split).items()}
        return found

    @contextmanager
    def _scores(self) -> Iterator[None]:
        self._scoring = True
        try:
            yield
        finally:
            self._scoring = False

    @staticmethod
    def _is_switched(candidate: Candidate, fitness: Fitness) -> bool:
        return candidate.recipe is not None and scores_switched(candidate.recipe, fitness)

    def _merged(self, candidate: Candidate, fitness: Fitness, split: Split) -> Evaluation:
        """Merge one candidate, and score it."""
        if candidate.recipe is None:
            return Evaluation(candidate.id, "infeasible", split, error="the genome has no recipe")
        start = time.perf_counter()
        try:
            recipe, part, what = candidate.recipe, candidate.part, f"to merge and score candidate {candidate.id}"
            self._resident.full = not self._engine.quantises(split)
            count, merging, scores = self._with_room(lambda: self._score(recipe, fitness, part), what)
        except Exception as error:
            found = failure(candidate, split, error, start)
            getattr(self._resident, "recover", bool)()  # NaN that an engine keeps would reach others
            return found
        scored = time.perf_counter() - start - merging
        model = scores.seconds.get("model", scored)  # a fitness that measures nothing spends its time in the model
        seconds = {"merge": merging - count.noted, "model": model, "other": max(0.0, scored - model)}
        if count.noted:
            seconds["note"] = count.noted
        self._resident.use_room()
        # A winner: the only candidates that held-out items are for.
        apart = self._apart(candidate) if split == "held_out" and candidate.genome is not None else {}
        return replace(success(candidate.id, split, scores, seconds, count), apart=apart)

    def _apart(self, candidate: Candidate) -> Mapping[str, float]:
        """How far the search's way to score is from the stock tool's on the present model; its failure is only said."""
        if "search" not in self._fitnesses or not hasattr(self._fitnesses["search"], "apart"):
            return {}
        fresh = "search" not in self._prepared
        self._scoring = True
        try:
            fitness: Any = self.fitness("search")
            if fresh and candidate.recipe is not None:  # the model may have become others meanwhile
                self._resident.apply(make_plan(candidate.recipe, self._pool))
            found: Mapping[str, float] = fitness.apart(self._resident.model)
            return found
        except Exception as error:
            if device_lost(error):
                raise lost(error) from error
            _LOG.warning("candidate %d could not be scored in both ways: %s", candidate.id, one_line(error))
            return {}
        finally:
            self._scoring = False

    def _with_room(self, work: Callable[[], T], what: str) -> T:
        """What some work returns, done again each time that memory has run out and something was let go.

        Raises:
            NoMemoryError: nothing is left to let go.
        """
        retries = Retries(self._resident.spare_memory)
        for left in reversed(range(_TRIES)):
            try:
                return work()
            except Exception as error:
                if not out_of_memory(error):
                    raise
                failed = error.with_traceback(None)
            # Out of the handler, which holds on to the frames of the error.
            if not left or not retries.again():
                raise no_room(failed, what, self._resident.model.device)
            _LOG.warning("no memory %s: what is kept to save time is let go", what)
        raise AssertionError("the last try returns or raises")

    def _score(self, recipe: Recipe, fitness: Fitness, part: Part | None) -> tuple[MergeCount, float, Scores]:
        """What merging took, seconds with those of planning, and the scores; of each task with its own switch on."""
        count, seconds, given = MergeCount(), 0.0, (() if part is None else (part,))

        def applied(planned: Callable[..., Plan], *of: Any) -> LoadedModel:
            nonlocal seconds
            self._scoring, start = False, time.perf_counter()
            self._batch_norms.leave()
            count.add(self._resident.apply(plan := planned(*of)))
            seconds += time.perf_counter() - start
            self._scoring = True
            self._batch_norms.put(plan, self._resident.model)
            return self._resident.model

        try:
            if scores_switched(recipe, fitness):
                switched: Any = fitness
                scores: Scores = switched.run_switched(lambda task: applied(self._task_plan, recipe, task), *given)
            else:
                scores = fitness.run(applied(self._plan, recipe), *given)
        finally:
            self._batch_norms.leave()
            self._scoring = False
        require_finite(scores)
        return count, seconds, scores

    def _task_plan(self, recipe: Recipe, task: str) -> Plan:
        """The plan of one task's model: where only heads are its own, that of the recipe with another head."""
        if recipe.heads is None or switch_of(recipe) is not None:
            return self._plan(task_recipe(recipe, task))
        return replace(self._plan(recipe), head=task)

    def _plan(self, recipe: Recipe) -> Plan:
        """The plan of a recipe; candidates of a race come again for their next items."""
        known = self._plans.pop(id(recipe), None)
        if known is None or known[0] is not recipe:
            known = recipe, make_plan(recipe, self._pool)
        self._plans[id(recipe)] = known  # the recipe is kept, so that its identity is no other's
        if len(self._plans) > _PLANS:
            del self._plans[next(iter(self._plans))]
        return known[1]

    def close(self) -> None:
        """Leave the shared cache and give the model's memory back, whoever still holds it."""
        self._resident.close()
        give_back()


def scores_switched(recipe: Recipe, fitness: Any) -> bool:
    """Whether a fitness scores each task of a recipe with its own switch on or head in place: both must name tasks."""
    if not hasattr(fitness, "run_switched") or not any(source for _, source in fitness.switches()):
        return False
    return len(tasks_of(recipe)) > 1

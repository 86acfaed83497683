"""Candidates on a pretended GPU whose allocations are refused: each in turn, or all above a budget."""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import pickle
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from contracts.test_merge_methods import CASES
from merge.gpu_recipes import everywhere_recipe, small_pool
from merge.path_models import path_recipe
from pretended_gpu import PACKAGES, PretendedGpu
from tiny_llama import save_llama
from transformers import modeling_utils

from evomerge.candidate import Candidate, Evaluation
from evomerge.evaluation.local import _TimeIsUp
from evomerge.evaluation.worker import Worker
from evomerge.models.pool import Pool
from evomerge.objectives import Objective
from evomerge.protocols import Scores
from evomerge.recipes.recipe import Recipe
from fitness._lm_eval import prepared
from fitness.lm_eval_tasks import LmEvalFitness

REFUSED = "CUDA out of memory. Tried to allocate 1 byte, which was refused."


class Forward:
    """Scores by one forward of a batch, which is cheap: for what is refused while merging."""

    objectives = (Objective("score"),)

    def __init__(self, batch: int = 2, length: int = 4) -> None:
        self.batch, self.length = batch, length

    def check(self) -> None:
        """Nothing can be wrong."""

    def prepare(self, model: Any) -> None:
        """Make the batch."""
        self.ids = torch.arange(self.batch * self.length, device=model.device).remainder(16).view(self.batch, -1)

    def run(self, model: Any, part: Any = None) -> Scores:
        """The sum of the logits."""
        return Scores({"score": float(model.module(self.ids, use_cache=False).logits.double().sum())})

    def fingerprint(self) -> str:
        """The same everywhere."""
        return "sha256:forward"


@dataclass(frozen=True)
class Kind:
    """A kind of candidate.

    Attributes:
        name: for people.
        split: which fitness scores it.
        recipe: of the candidate.
        before: of the worker's candidates before it, scored by a cheap forward: from the second on sources and merged
            slices are kept on the device.
    """

    name: str
    split: Any
    recipe: Recipe
    before: tuple[Recipe, ...]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        evaluation: of it; ``None`` where it was ended.
        again: of the same candidate right after it.
        beside: bytes of the device once it was scored, without what is kept on purpose: sources, merged slices, notes.
        left: that are there once the worker was closed: the items.
        said: what the log says of smaller batches.
    """

    evaluation: Evaluation | None
    again: Evaluation | None
    beside: int
    left: int
    said: str


@dataclass
class Tried:
    """A kind of candidate, some of whose allocations were refused.

    Attributes:
        allocations: of a candidate that nothing disturbs.
        places: how many of them differ by their stacks.
        attempts: how many were refused.
        wrong: what was wrong with those, by what it was.
    """

    allocations: int
    places: int
    attempts: int
    wrong: dict[str, list[int]]


class Bench:
    """Workers on a pretended GPU, whose candidates are refused memory: each time in a process of its own, forked there.

    Args:
        folder: for models and items.
        layers: of the models.
        jobs: processes at a time.

    Attributes:
        enough: bytes of the device that `shrunk` leaves.
    """

    def __init__(self, folder: Path, layers: int = 1, jobs: int | None = None) -> None:
        self.folder, self.jobs, self.enough = folder, jobs or os.cpu_count() or 1, 0
        self.gpu = PretendedGpu()
        names = ("base", "a", "b", "c")
        self.pool: Pool = small_pool({n: save_llama(folder / n, i, layers=layers) for i, n in enumerate(names)})
        self.fitnesses: dict[Any, Any] = {
            "forward": Forward(),
            "exact": lm_eval_fitness(folder, "exact"),
            "shared": lm_eval_fitness(folder, "shared"),
        }
        for name in ("exact", "shared"):
            self.fitnesses[name].check()

    def scoring(self) -> list[Kind]:
        """All request types in both modes, on a worker's first candidate and later, and a path that repeats a layer."""
        one, two, three = (self.pool.info.linear({"a": 1 - i / 4, "b": i / 4}) for i in range(3))
        path = path_recipe(self.pool, [("a", 0, 1.0), ("b", 0, 1.1), ("a", 0, 1.0)])
        found = [Kind(f"{split} requests", split, three, (one, two)) for split in ("exact", "shared")]
        found += [Kind(f"{split} requests, the first candidate", split, one, ()) for split in ("exact", "shared")]
        return [*found, Kind("a path", "exact", path, (one, two)), Kind("a model again", "exact", two, (one, two))]

    def merging(self, whole: bool = True) -> list[Kind]:
        """Every merge method: the first candidate, which notes what it needs of the sources, and a later one.

        Args:
            whole: of all slices; of one, and linear for the others, otherwise.
        """
        info = self.pool.info
        one, two = (info.linear({"a": 1 - i / 4, "b": i / 4}) for i in range(2))
        found = []
        for case in CASES:
            recipes = [everywhere_recipe(case, self.pool, seed) for seed in range(2)]
            if not whole:
                of = {entry.slice: entry for entry in two.slices}
                own = next(s for s in info.slices if s.component == "norm")
                recipes = [
                    info.recipe([entry if entry.slice == own else of[entry.slice] for entry in recipe.slices])
                    for recipe in recipes
                ]
            found += [Kind(f"{case}, the first", "forward", recipes[0], (one, two))]
            found += [Kind(f"{case}, later", "forward", recipes[1], (one, two, recipes[0]))]
        return found

    def worker(self, splits: Iterable[Any] = ("forward", "exact", "shared")) -> Worker:
        """A worker with the items of some fitnesses."""
        with (
            mock.patch.object(prepared, "unsupported", return_value=""),  # tried on the host, and for long
            mock.patch.object(modeling_utils, "caching_allocator_warmup"),  # takes 1.2 GB less than there are
        ):
            worker = Worker(self.pool, self.fitnesses, device="cuda")
            for split in splits:
                worker.fitness(split)
        return worker

    def try_each(self, kind: Kind, acts: Sequence[Act], every: bool = False, deep: bool = True) -> Tried:
        """Refuse allocations of a candidate, each in a process of its own, which goes on from there.

        Args:
            kind: of the candidate.
            acts: what happens at an allocation.
            every: whether at each; otherwise once at each place.
            deep: whether places differ by the whole stack; otherwise by what of it is this project's.
        """
        attempts, places, count = list[tuple[int, Act, Path]](), set[Hashable](), 0
        running: list[int] = []
        child: Path | None = None

        def hook(nbytes: int) -> None:
            nonlocal count, child
            if not nbytes:
                return
            place = _stack(deep)
            if every or place not in places:
                for act in acts:
                    report = self.folder / f"{count}-{act.__name__}"
                    attempts.append((count, act, report))
                    process = os.fork()
                    if not process:
                        child, self.gpu.on_allocation = report, _nothing
                        act(self)
                        return
                    running.append(process)
                    while len(running) >= self.jobs:
                        os.waitpid(running.pop(0), 0)
            places.add(place)
            count += 1

        worker, plenty = self.worker({"forward", kind.split}), self.gpu.memory
        said, evaluation, again = _Said(), None, None
        for recipe in kind.before:
            assert worker.evaluate(Candidate(0, recipe), "forward").ok  # type: ignore[arg-type]
        logging.getLogger("fitness").addHandler(said)
        self.gpu.on_allocation = hook
        try:
            with suppress(_TimeIsUp):
                evaluation = worker.evaluate(Candidate(1, kind.recipe), kind.split)
            self.gpu.on_allocation, self.gpu.memory = _nothing, plenty
            gc.collect()  # generation leaves cycles, which go when memory runs out or at any time before
            beside = self.gpu.used - kept(worker)
            if evaluation is not None:
                again = worker.evaluate(Candidate(2, kind.recipe), kind.split)
            worker.close()
            del worker
            gc.collect()
            outcome = Outcome(evaluation, again, beside, self.gpu.used, said.text)
            if child is not None:
                child.write_bytes(pickle.dumps(outcome))
        finally:
            if child is not None:
                os._exit(0)
            self.gpu.on_allocation = _nothing
            logging.getLogger("fitness").removeHandler(said)
        for process in running:
            os.waitpid(process, 0)
        wrong: dict[str, list[int]] = {}
        for number, act, report in attempts:
            found = pickle.loads(report.read_bytes()) if report.exists() else None
            for what in complaints(found, outcome) if found is not None else ["it did not end"]:
                wrong.setdefault(f"{act.__name__}: {what}", []).append(number)
            report.unlink(missing_ok=True)
        return Tried(count, len(places), len(attempts), wrong)

    def within(self, budget: int, split: Any, recipes: Sequence[Recipe]) -> list[Evaluation]:
        """What becomes of a worker and its candidates on a device of so many bytes.

        Raises:
            EvomergeError: the worker has no room.
        """
        plenty, self.gpu.memory = self.gpu.memory, budget
        worker = None
        try:
            worker = self.worker([split])
            return [worker.evaluate(Candidate(i, recipe), split) for i, recipe in enumerate(recipes)]
        finally:
            if worker is not None:
                worker.close()
            self.gpu.memory = plenty

    def needs(self, split: Any) -> tuple[int, int]:
        """Bytes of the model, and what scoring it takes beside it at most, items included."""
        worker: Any = self.worker([split])
        worker.evaluate(Candidate(0, self.pool.info.linear({"a": 1.0})), split)
        self.gpu.reset()
        self.fitnesses[split].run(worker._resident.model)
        model = self.pool.checkpoints["base"].nbytes
        batch = self.gpu.peak - model
        worker.close()
        return model, batch


Act = Callable[[Bench], None]


def refused(bench: Bench) -> None:
    """Refuse an allocation."""
    raise torch.OutOfMemoryError(REFUSED)


def shrunk(bench: Bench) -> None:
    """Leave only `Bench.enough` of the device from now on."""
    bench.gpu.memory = bench.enough


def time_is_up(bench: Bench) -> None:
    """End an evaluation as `evaluator.timeout` does."""
    raise _TimeIsUp


def kept(worker: Worker) -> int:
    """Bytes of the device that a worker keeps to save time."""
    resident: Any = worker._resident
    sources, memory = resident.sources, resident._memory
    return int(sources.device_bytes + sources.notes.device_used + memory.used + memory._spare_bytes)


def complaints(found: Outcome, expected: Outcome) -> list[str]:
    """What is wrong with a candidate that was refused memory and should have succeeded with the same scores."""
    assert expected.evaluation is not None
    wrong = []
    for evaluation, which in ((found.evaluation, "failed"), (found.again, "failed when it came again")):
        if evaluation is None:
            continue
        if not evaluation.ok:
            wrong.append(f"{which}: {evaluation.error}")
        elif (evaluation.objectives, evaluation.metrics) != (
            expected.evaluation.objectives,
            expected.evaluation.metrics,
        ):
            wrong.append(f"other scores: {evaluation.objectives} {evaluation.metrics}")
    if found.evaluation is not None and found.beside > expected.beside:
        wrong.append(f"{found.beside} bytes are used and not {expected.beside}")
    if found.left > expected.left:
        wrong.append(f"{found.left} bytes are left and not {expected.left}")
    if found.said:
        wrong.append(f"said: {found.said}")
    return wrong


def _nothing(nbytes: int) -> None:
    """Refuse nothing."""


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage()


def _stack(deep: bool) -> Hashable:
    """Where in which functions the program is: what tells two places apart that ask for memory."""
    found: list[Hashable] = []
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != "try_each":
        if deep or frame.f_code.co_filename.startswith(PACKAGES):
            found.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


def lm_eval_fitness(folder: Path, forwards: Any) -> LmEvalFitness:
    """Three documents for each type of request, in one batch each."""
    rows = [{"q": f"t{i} t{i + 3}", "c": [f"t{i + 5}", f"t{i + 7} t4"], "a": f"t{i + 9}"} for i in range(3)]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shared = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}

    def metric(name: str, aggregation: str = "mean", higher: bool = True) -> dict[str, Any]:
        return {"metric_list": [{"metric": name, "aggregation": aggregation, "higher_is_better": higher}]}

    tasks: dict[str, dict[str, Any]] = {
        "choose": {"output_type": "multiple_choice", "doc_to_choice": "{{c}}", "doc_to_target": 0} | metric("acc"),
        "complete": {"output_type": "loglikelihood"} | metric("perplexity", "perplexity", False),
        "read": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}} {{a}}"},
        "write": {
            "output_type": "generate_until",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 2},
            **metric("exact_match"),
        },
    }
    texts = {"doc_to_text": "{{q}}", "doc_to_target": " {{a}}"}
    given = [{"task": copy.deepcopy({"task": name} | shared | texts | own)} for name, own in tasks.items()]
    return LmEvalFitness(given, batch_size=16, forwards=forwards)

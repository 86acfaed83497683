"""The evaluator of a cluster: Ray actors with one resident model each. Only the modules `ray_...` here import ray."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import ray
from ray.exceptions import RayError

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import DeviceLostError, EvomergeError
from evomerge.evaluation import ray_workers
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.engine_settings import EngineSettings, Quantise
from evomerge.evaluation.limits import (
    PlacementStrategy,
    check_at_once,
    check_gpus,
    check_placement,
    check_threads,
    check_timeout,
    check_workers,
)
from evomerge.evaluation.ray_actor import DEAD, cause, death
from evomerge.evaluation.ray_cluster import Cluster
from evomerge.evaluation.ray_workers import Call, RayWorkers
from evomerge.evaluation.scheduler import Job, Scheduler, WorkerSlot
from evomerge.evaluation.worker_builder import BuiltFrom, WorkerBuilder, together_of
from evomerge.protocols import Work

_LOG = logging.getLogger(__name__)


class RayEvaluator:
    """Evaluates on Ray actors, each holding one resident model.

    A worker that dies is replaced and its candidate tried again; one whose workers die `tries` times is recorded as
    failed. Nodes may leave and join: workers that have no place start when there is one.

    Args:
        build: makes a worker inside its actor; travels by pickle. Its `modules`, if it has any, are files that the
            workers of other machines need.
        workers: number of actors, or ``auto``: as many as the cluster has room for, at any time.
        cpus_per_worker: of Ray's CPUs, for each.
        gpus_per_worker: of Ray's GPUs; a fraction lets several workers share one, 0 is a worker on the processor.
            ``None``: one where the cluster has any and `device` is a GPU or ``auto``.
        placement_strategy: of the GPUs of an engine over several: ``STRICT_PACK`` for those of one node, ``PACK`` for
            as few nodes as have them.
        address: of a running cluster; ``None`` starts Ray on this machine for this run.
        device: as in the local evaluator; ``auto`` is the GPU that Ray gives a worker, with several the model is spread
            over them, with none it is the processor.
        threads: CPU threads of torch in each worker; ``None`` is `cpus_per_worker`.
        cache: bytes of merged slices that each worker keeps (``2GB``); ``auto`` for a quarter of what is free, divided.
        shared_cache: of the workers of a machine: ``memory`` (``auto`` with several workers), ``disk``, ``off``, or a
            folder that outlives the run.
        shared_cache_size: its bytes.
        shared_cache_keeps: ``likely``: what is likely wanted again; ``all``: whatever was merged, while there is room.
        hidden_states: bytes of hidden states that each worker keeps, 0 for none; ``auto``: an eighth of what is free.
        gpu: bytes of a GPU to count with (``24GB``), where they shall not be all that it has.
        engine: what scores models: ``transformers``; ``vllm``, whose weights are changed in place; ``server``, that
            runs somewhere and is given adapters.
        engine_args: of ``vllm.LLM``, such as ``max_model_len``: a mapping, or a text as lm-eval's ``--model_args``.
        quantise: how a worker keeps the weights of the model's layers while the search scores: ``int8``, ``nf4``,
            ``fp8``; ``None`` for in full precision.
        quantise_held_out: whether finalists and held-out items are scored so too, instead of in full precision.
        server: where it is and how it is asked: `server_settings.ServerSettings`.
        adapters_at_once: how many candidates that are LoRA adapters each vLLM is given at once; 0 and ``None``: weights
            are changed in place for each.
        timeout: seconds that an evaluation may take, of several at once as many times that; then its worker is
            replaced, and it has failed; of several each is tried alone first.
        tries: how many workers may die evaluating a candidate.
        patience: seconds to wait for a place for a worker while there is no worker.
        working_dir: a folder with files that workers of other machines need; they run in a copy of it.

    Attributes:
        cache_settings: what of these concerns the caches.
        together: how many candidates a worker takes at once.
    """

    built_from: ClassVar[BuiltFrom] = "shipped worker"

    def __init__(
        self,
        build: WorkerBuilder,
        *,
        workers: int | str = 2,
        cpus_per_worker: int = 1,
        gpus_per_worker: float | None = None,
        placement_strategy: PlacementStrategy = "STRICT_PACK",
        address: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        cache: str | int = "auto",
        shared_cache: str = "auto",
        shared_cache_size: str | int = "auto",
        shared_cache_keeps: str = "likely",
        hidden_states: str | int = "auto",
        gpu: str | int | None = None,
        timeout: float | None = None,
        tries: int = 2,
        patience: float = 600,
        working_dir: str | None = None,
        engine: str = "transformers",
        engine_args: str | dict[str, Any] | None = None,
        quantise: Quantise | None = None,
        quantise_held_out: bool = False,
        server: dict[str, Any] | None = None,
        adapters_at_once: int | None = None,
    ) -> None:
        # Checked here; who builds the workers reads them.
        given = {"engine": engine, "engine_args": engine_args, "server": server, "adapters_at_once": adapters_at_once}
        EngineSettings.of({**given, "quantise": quantise, "quantise_held_out": quantise_held_out})
        check_at_once(adapters_at_once, engine)
        check_workers(workers, cpus_per_worker, tries, patience)
        check_gpus(gpus_per_worker, device)
        grouped = engine == "vllm" and (gpus_per_worker or 0) > 1 and device in ("auto", "spread")
        check_placement(placement_strategy, grouped)
        check_timeout(timeout)
        check_threads(threads)
        self._build = build
        self._fixed = workers if isinstance(workers, int) else None
        modules = getattr(build, "modules", ())
        gpus = 0 if device in ("cpu", "mps") or engine == "server" else gpus_per_worker
        strategy = placement_strategy if grouped else None
        self._cluster = Cluster(address, cpus_per_worker, gpus, self._fixed, modules, working_dir, strategy)
        self.together = together_of(build)
        self._scheduler = Scheduler(tries, timeout, self.together)
        caches = shared_cache, shared_cache_size, shared_cache_keeps
        self.cache_settings = CacheSettings.of(cache, *caches, self._fixed or 2, gpu, hidden_states)
        self._workers = RayWorkers(
            self._cluster,
            self._scheduler,
            build,
            fixed=self._fixed,
            device=device,
            threads=cpus_per_worker if threads is None else threads,
            cache=self.cache_settings,
            patience=patience,
        )
        self._done: deque[Evaluation] = deque()

    @property
    def slots(self) -> int:
        """What all workers evaluate at once; with ``auto``, of those that there is room for now."""
        if self._fixed is not None or self._cluster.is_open:
            return self.together * (self._fixed or max(1, self._workers.wanted))
        if self._cluster.address is None and not self._cluster.gpus:
            return self.together * max(1, (os.cpu_count() or 1) // self._cluster.cpus)
        return self.together

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        """Queue a candidate; it starts at once when a worker is free, unless others go with it."""
        self._workers.open(split)
        self._scheduler.queue.append(Job(candidate, split))
        if self.together == 1:
            self._dispatch()

    def collect(self) -> Evaluation:
        """Wait for any candidate that was submitted.

        Raises:
            EvomergeError: no worker can be had, or none that scores the same items; the cluster has gone.
        """
        while not self._done:
            self._step()
        return self._done.popleft()

    def work(self) -> Sequence[Work]:
        """What each worker does; another thread may ask."""
        return self._workers.work()

    def unplaced(self) -> str:
        """What to say before a search where workers have no place; empty where all have. Asks a cluster that is up."""
        planned = self._cluster.address is None and self.cache_settings.gpu is not None  # for another machine
        return "" if planned else self._cluster.unplaced()

    def withdraw(self) -> list[int]:
        """Forget what waits for a worker; returns the candidates' ids."""
        return self._scheduler.withdraw()

    def fingerprint(self, split: Split) -> str:
        """The fingerprint of a split's fitness, as the workers prepared it."""
        self._workers.open(split)
        while split not in self._workers.fingerprints:
            for slot in self._scheduler.taken:
                if slot.begun and split not in slot.splits and not slot.jobs:
                    self._workers.prepare(slot, split)
                    break
            self._step()
        return self._workers.fingerprints[split]

    def close(self) -> None:
        """End the workers, and Ray where this evaluator started it."""
        self._workers.close()
        self._cluster.close()
        self._scheduler.clear()
        self._done.clear()

    def _step(self) -> None:
        """Wait a little for anything to happen, and see to it."""
        self._workers.hire()
        self._dispatch()
        self._workers.watch()
        pause = self._scheduler.pause(1.0)
        if not self._workers.calls:
            time.sleep(min(pause, 0.2))
        else:
            references = list(self._workers.calls)
            ready, rest = ray.wait(references, num_returns=1, timeout=pause)
            if ready and rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
            for reference in ready:
                self._arrive(reference)
        self._end_overdue()
        self._dispatch()

    def _arrive(self, reference: Any) -> None:
        """A call has ended."""
        call = self._workers.calls.pop(reference, None)
        if call is None:  # of a worker that was lost meanwhile
            return
        try:
            result = ray.get(reference)
        except DEAD as error:
            self._lose(call.slot, error)
        except RayError as error:
            raised = cause(error)
            if isinstance(raised, DeviceLostError):
                self._end(call.slot, raised.given)
            elif not call.watch:  # what a worker is at is worth no search
                raise raised from error
        else:
            self._take(call, result)

    def _take(self, call: Call, result: Any) -> None:
        slot = call.slot
        if call.jobs:
            evaluations, seconds = result
            slot.stage = ("", 0, 0)
            for job in call.jobs:
                self._scheduler.finish(slot, job, seconds)
            self._done.extend(evaluations)
        elif call.split is not None:
            version, fingerprint = result
            self._workers.prepared(slot, call.split, version, fingerprint)
        elif call.watch:
            slot.stage = result
        else:
            place, _ = result
            self._workers.placed(slot, place)

    def _lose(self, slot: WorkerSlot, error: RayError) -> None:
        """A worker is gone."""
        text = " ".join(str(error).split())
        if "owner has died" in text or "Owner's node has crashed" in text:
            raise self._cluster.lost("the Ray node that the search runs on has gone")
        if "creation task" in text:  # what it is made from could not be read: it will not be the next time either
            raise EvomergeError(
                f"{slot.name} could not be made: {str(error).strip().splitlines()[-1].strip()}",
                "modules that every node can import",
                "install them there, or put them into a folder and set evaluator.working_dir",
            )
        how, caused_failure = death(error)
        self._end(slot, how, caused_failure=caused_failure)

    def _end(self, slot: WorkerSlot, how: str, *, caused_failure: bool = True) -> None:
        """A worker is of no use any more: another one takes its place, and its candidate is tried again."""
        _LOG.warning("%s is gone (%s)", slot.name, how)
        self._let_go(slot)
        if caused_failure and (slot.preparing or not slot.begun):
            self._workers.count_failed_start(slot, how)
        job = self._scheduler.vacate(slot, caused_failure=caused_failure)
        if job is not None:
            self._fail(
                job, f"its worker died {job.deaths} times: {how}" if caused_failure else f"lost {job.lost} workers"
            )

    def _let_go(self, slot: WorkerSlot) -> None:
        """End a worker; answers that arrived before count."""
        for call, result in self._workers.let_go(slot):
            self._take(call, result)

    def _end_overdue(self) -> None:
        """End workers whose evaluation, or beginning, takes too long."""
        for slot in self._scheduler.stuck(ray_workers.LONGEST_START):
            self._end(slot, f"it did not begin within {ray_workers.LONGEST_START:g} s")
        for slot in self._scheduler.overdue():
            self._let_go(slot)
            late = slot in self._scheduler.overdue()  # unless its answer was just there
            job = self._scheduler.vacate(slot, caused_failure=late, final=late)
            if job is not None:
                self._fail(job, f"it took longer than evaluator.timeout={self._scheduler.timeout:g} s")

    def _fail(self, job: Job, error: str) -> None:
        self._done.append(Evaluation(job.candidate.id, "failed", job.split, error=error))

    def _dispatch(self) -> None:
        if self.together > 1:
            if not self._done:  # until what has arrived is told, more may be asked that goes with what waits
                for slot, group in self._scheduler.assign_together():
                    self._send(slot, group)
            return
        for slot, job in self._scheduler.assign():
            self._send(slot, [job])

    def _send(self, slot: WorkerSlot, group: Sequence[Job]) -> None:
        split = group[0].split
        if split not in slot.splits:
            self._workers.prepare(slot, split)
        call = slot.worker.evaluate.remote([job.candidate for job in group], split)
        self._workers.calls[call] = Call(slot, tuple(group))

"""The evaluator of a laptop: one worker in this process."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.engine_settings import EngineSettings, Quantise
from evomerge.evaluation.limits import check_threads, check_timeout
from evomerge.evaluation.worker_builder import BuiltFrom, WorkerBuilder, together_of
from evomerge.protocols import Work

if TYPE_CHECKING:
    from evomerge.evaluation.worker import Worker

_NAME = "this process"
_LOG = logging.getLogger(__name__)


class _TimeIsUp(BaseException):
    """Not an `Exception`: what evaluates candidates takes those for the candidate's."""


class LocalEvaluator:
    """Evaluates in this process, one candidate at a time, or as many as are scored at once. Never imports ray.

    Args:
        build: makes the worker, when the first candidate arrives.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``spread`` for a model larger than
            one GPU: its layers lie on all there are.
        threads: CPU threads of torch; ``None`` leaves torch's own choice.
        cache: bytes of merged slices to keep (``2GB``); ``auto`` for a quarter of what is free.
        shared_cache: ``off`` (and ``auto``), ``memory``, ``disk``, or a folder that outlives the run.
        shared_cache_size: its bytes.
        shared_cache_keeps: ``likely``: what is likely wanted again; ``all``: whatever was merged, while there is room.
        hidden_states: bytes of hidden states to keep (``2GB``), 0 for none; ``auto`` for an eighth of what is free.
        gpu: bytes of a GPU to count with (``24GB``), where it shall not be all that it has.
        engine: what scores models: ``transformers``; ``vllm``, whose weights are changed in place; ``server``, that
            runs somewhere and is given adapters.
        engine_args: of ``vllm.LLM``, such as ``max_model_len``: a mapping, or a text as lm-eval's ``--model_args``.
        quantise: how a worker keeps the weights of the model's layers while the search scores: ``int8``, ``nf4``,
            ``fp8``; ``None`` for in full precision.
        quantise_held_out: whether finalists and held-out items are scored so too, instead of in full precision.
        server: where it is and how it is asked: `server_settings.ServerSettings`.
        adapters_at_once: how many candidates that are one model and terms of low rank, adapters of a base or
            perturbations, are scored at once: in one forward, ``None`` for one, less where memory ends; by vLLM as
            requests of one engine, 0 and ``None`` for none.
        timeout: seconds that an evaluation may take, several at once as many times that; then it has failed, and a new
            worker is made for the next; of several each is tried alone first. Code
            that never returns to Python cannot be ended here: ``evaluator=ray evaluator.workers=1`` can end it.

    Attributes:
        cache_settings: what of these concerns the caches.
    """

    built_from: ClassVar[BuiltFrom] = "worker"

    def __init__(
        self,
        build: WorkerBuilder,
        *,
        device: str = "auto",
        threads: int | None = None,
        cache: str | int = "auto",
        shared_cache: str = "auto",
        shared_cache_size: str | int = "auto",
        shared_cache_keeps: str = "likely",
        hidden_states: str | int = "auto",
        gpu: str | int | None = None,
        timeout: float | None = None,
        engine: str = "transformers",
        engine_args: str | dict[str, Any] | None = None,
        quantise: Quantise | None = None,
        quantise_held_out: bool = False,
        server: dict[str, Any] | None = None,
        adapters_at_once: int | None = None,
    ) -> None:
        check_timeout(timeout)
        # Checked here; who builds the worker reads them.
        given = {"engine": engine, "engine_args": engine_args, "server": server, "adapters_at_once": adapters_at_once}
        EngineSettings.of({**given, "quantise": quantise, "quantise_held_out": quantise_held_out})
        check_threads(threads)
        self._timeout = timeout
        self._build = build
        caches = shared_cache, shared_cache_size, shared_cache_keeps
        self.cache_settings = CacheSettings.of(cache, *caches, gpu=gpu, hidden_states=hidden_states)
        self._device, self._threads, self._engine = device, threads, engine
        self._worker: Worker | None = None
        self._doing = Work(_NAME)
        self._queue: deque[tuple[Candidate, Split]] = deque()
        self._done: deque[Evaluation] = deque()
        self._in_one = adapters_at_once or 1 if engine == "transformers" else 1

    @property
    def together(self) -> int:
        """How many candidates the worker takes at once."""
        return max(self._in_one, together_of(self._build))

    @property
    def slots(self) -> int:
        """As many as the worker takes at once, mostly one: the process evaluates while it is asked to."""
        return self.together

    @property
    def worker(self) -> Worker:
        """The worker, built at first use."""
        if self._worker is None:
            from evomerge.evaluation.devices import idle_gpus

            idle = "" if self._engine == "server" else idle_gpus(self._device)
            if idle:
                _LOG.warning(idle)
            self._worker = self._build(device=self._device, threads=self._threads, cache=self.cache_settings)
        return self._worker

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        """Queue a candidate."""
        self._queue.append((candidate, split))

    def collect(self) -> Evaluation:
        """Evaluate the oldest queued candidate, with those behind it that go with it."""
        if not self._done:
            group, split = self._next_group()
            found = self._evaluated(group, split)
            if found is None and len(group) > 1:  # one of them takes long, nobody knows which
                for candidate in group:
                    self._done.extend(self._evaluated([candidate], split) or [self._late(candidate, split)])
            else:
                self._done.extend(found or [self._late(group[0], split)])
        return self._done.popleft()

    def _next_group(self) -> tuple[list[Candidate], Split]:
        """What is evaluated next: the oldest, and those behind it on the same items that a worker takes at once."""
        candidate, split = self._queue.popleft()
        group = [candidate]
        while self._queue and len(group) < self.together:
            following, of = self._queue[0]
            if of != split or (self._in_one > 1 and following.part != candidate.part):
                break
            group.append(following)
            self._queue.popleft()
        return group, split

    def _evaluated(self, group: Sequence[Candidate], split: Split) -> list[Evaluation] | None:
        """The evaluations of a group; ``None`` where they take too long."""
        self._doing = Work(_NAME, group[0].id, split, time.time())
        try:
            worker = self.worker
            worker.fitness(split)  # preparing it once is not the candidate's time
            with _limit(self._timeout and self._timeout * len(group)):
                return worker.evaluate_together(group, split) if len(group) > 1 else [worker.evaluate(group[0], split)]
        except _TimeIsUp:
            pass
        finally:
            self._doing = Work(_NAME)
        # Out of the handler, which holds on to what the evaluation had: its model is somewhere between two candidates,
        # and the next one is not to be made beside it.
        del worker
        self.close()
        return None

    def _late(self, candidate: Candidate, split: Split) -> Evaluation:
        error = f"it took longer than evaluator.timeout={self._timeout:g} s"
        return Evaluation(candidate.id, "failed", split, error=error)

    def work(self) -> Sequence[Work]:
        """What the worker does; another thread may ask."""
        doing, worker = self._doing, self._worker
        if doing.candidate is None or worker is None:
            return (doing,)
        stage, done, slices = worker.stage()
        return (replace(doing, stage=stage, done=done, slices=slices),)

    def withdraw(self) -> list[int]:
        """Forget all that is queued; returns the candidates' ids."""
        ids = [candidate.id for candidate, _ in self._queue]
        self._queue.clear()
        return ids

    def fingerprint(self, split: Split) -> str:
        """The fingerprint of a split's fitness."""
        return self.worker.fingerprint(split)

    def close(self) -> None:
        """Let the resident model and the caches go."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None


@contextmanager
def _limit(seconds: float | None) -> Iterator[None]:
    """Raise `_TimeIsUp` in the main thread once so many seconds have passed."""
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        _LOG.warning("evaluator.timeout has no effect outside the main thread")
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

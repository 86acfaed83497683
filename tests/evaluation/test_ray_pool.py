"""Ray actors: what they are given, how they die. One Ray for all tests of this file: starting it takes seconds."""

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from durability.killed_runs import Plan, Workers, content, session

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, EvomergeError, PoolError
from evomerge.evaluation import ray_workers
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.ray_pool import RayEvaluator
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger

pytestmark = pytest.mark.slow
HERE: Any = {"address": "auto", "shared_cache": "off"}


class Fitness:
    """Has one fingerprint everywhere, unless the folder says that it has another one in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fingerprint(self) -> str:
        return f"sha256:{os.getpid()}" if (self.folder / "own items").exists() else "sha256:same"


class Worker:
    """Does what the files with the candidates' ids say: die once, or always; take long."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fingerprint(self, split: str) -> str:
        return self.fitness(split).fingerprint()

    def fitness(self, split: str) -> Fitness:
        if (self.folder / "begin").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return Fitness(self.folder)

    def evaluate(self, candidate: Candidate, split: str) -> Evaluation:
        order = self.folder / str(candidate.id)
        with (self.folder / "begun").open("a") as file:
            file.write(f"{candidate.id} {os.getpid()}\n")
        if order.exists():
            text = order.read_text()
            if text == "once":
                order.unlink()
            if text == "long":
                time.sleep(60)
            os.kill(os.getpid(), signal.SIGKILL)
        return Evaluation(candidate.id, "ok", split, objectives={"pid": float(os.getpid())})

    def close(self) -> None: ...


class Noting(Worker):
    """Says that it is noting while it evaluates."""

    def stage(self) -> tuple[str, int, int]:
        return "noting", 3, 9

    def evaluate(self, candidate: Candidate, split: str) -> Evaluation:
        time.sleep(6)
        return super().evaluate(candidate, split)


class Weighing:
    """Scores recipes as the searches of the durability tests do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fingerprint(self, split: str) -> str:
        return self.fitness(split).fingerprint()

    def fitness(self, split: str) -> Fitness:
        return Fitness(self.folder)

    def evaluate(self, candidate: Candidate, split: Any) -> Evaluation:
        time.sleep(0.02)  # long enough for several killings on a fast machine
        scorer = Workers(1, 0.0, False)
        scorer.submit(candidate, split)
        return scorer.collect()

    def close(self) -> None: ...


class Build:
    def __init__(self, folder: Path, worker: Any = Worker) -> None:
        self.folder, self.worker = folder, worker

    def __call__(self, *, device: str, threads: int | None, cache: CacheSettings) -> Any:
        if device == "broken":
            raise PoolError("no folder math", "", "look again")
        return self.worker(self.folder)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    # The workers cannot import this file nor its neighbours: their classes travel whole.
    for module in (__name__, "durability.killed_runs"):
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def evaluator(tmp_path: Path) -> Iterator[RayEvaluator]:
    started = RayEvaluator(Build(tmp_path), workers=2, **HERE, tries=2)  # type: ignore[arg-type]
    yield started
    started.close()


def results(evaluator: RayEvaluator, count: int) -> dict[int, Evaluation]:
    for number in range(count):
        evaluator.submit(Candidate(number, None))
    found = [evaluator.collect() for _ in range(count)]
    assert sorted(e.candidate for e in found) == list(range(count))
    return {evaluation.candidate: evaluation for evaluation in found}


def _wait(evaluator: RayEvaluator) -> None:
    for _ in range(600):
        evaluator._step()


def begun(folder: Path) -> list[int]:
    return [int(line.split()[0]) for line in (folder / "begun").read_text().splitlines()]


def test_what_kills_its_workers_fails_alone_and_what_does_so_once_is_tried_again(
    evaluator: RayEvaluator, tmp_path: Path
) -> None:
    assert evaluator.fingerprint("search") == "sha256:same"
    (tmp_path / "12").write_text("once")
    (tmp_path / "20").write_text("always")
    found = results(evaluator, 40)  # fast enough to be sent several at a time
    assert [number for number, evaluation in found.items() if not evaluation.ok] == [20]
    assert found[20].error == "its worker died 2 times: killed, or crashed"
    # Twice, and once more where the answer before it was lost on its way: its first death then counts as that one's.
    assert begun(tmp_path).count(20) in (2, 3)
    processes = {evaluation.objectives["pid"] for evaluation in found.values() if evaluation.ok}
    assert len(processes - {float(os.getpid())}) >= 2  # the others may be done before a new one has begun
    assert {work.candidate for work in evaluator.work()} == {None}


def test_what_a_worker_is_at_is_known_while_it_evaluates(tmp_path: Path) -> None:
    evaluator = RayEvaluator(Build(tmp_path, Noting), workers=1, **HERE)  # type: ignore[arg-type]
    evaluator.submit(Candidate(0, None))
    seen: set[tuple[str, int, int]] = set()
    deadline = time.monotonic() + 120
    while not evaluator._done and time.monotonic() < deadline:
        evaluator._step()
        seen |= {(work.stage, work.done, work.slices) for work in evaluator.work()}
    assert ("noting", 3, 9) in seen
    assert evaluator.collect().ok
    assert evaluator.work()[0].stage == ""
    evaluator.close()


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    evaluator = RayEvaluator(Build(tmp_path), workers=2, **HERE, timeout=1.0)  # type: ignore[arg-type]
    (tmp_path / "3").write_text("long")
    found = results(evaluator, 30)
    assert [(number, e.error) for number, e in found.items() if not e.ok] == [
        (3, "it took longer than evaluator.timeout=1 s")
    ]
    assert begun(tmp_path).count(3) == 1
    evaluator.submit(Candidate(30, None), "held_out")
    assert evaluator.collect().split == "held_out"
    evaluator.close()


def test_as_many_workers_as_there_is_room_for(tmp_path: Path) -> None:
    evaluator = RayEvaluator(Build(tmp_path), workers="auto", **HERE)  # type: ignore[arg-type]
    evaluator.fingerprint("search")
    assert evaluator.slots == 2
    assert len(evaluator.work()) == 2
    evaluator.close()


def test_a_worker_that_cannot_be_built_gives_its_own_error(tmp_path: Path) -> None:
    evaluator = RayEvaluator(Build(tmp_path), workers=1, **HERE, device="broken")  # type: ignore[arg-type]
    evaluator.submit(Candidate(0, None))
    with pytest.raises(PoolError, match="no folder math; look again"):
        evaluator.collect()
    evaluator.close()


def test_a_worker_whose_module_is_not_there_is_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("class Build:\n    def __call__(self, **settings): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    evaluator = RayEvaluator(importlib.import_module("only_here").Build(), workers=1, **HERE)
    with pytest.raises(EvomergeError, match=r"worker 1 could not be made: .*No module named 'only_here'; modules that"):
        evaluator.fingerprint("search")
    evaluator.close()


def test_workers_that_die_while_they_begin_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "_BACKOFF", 0.1)
    (tmp_path / "begin").touch()
    evaluator = RayEvaluator(Build(tmp_path), workers=1, **HERE)  # type: ignore[arg-type]
    with pytest.raises(EvomergeError, match="3 workers died one after the other while they began"):
        evaluator.fingerprint("search")
    evaluator.close()


def test_workers_with_other_items_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own items").touch()
    evaluator = RayEvaluator(Build(tmp_path), workers=2, **HERE)  # type: ignore[arg-type]

    def begin() -> None:
        # Two workers that are ready at the same step are compared at once: then the fingerprint itself is refused.
        evaluator.fingerprint("search")
        evaluator.submit(Candidate(0, None))
        _wait(evaluator)

    with pytest.raises(EvomergeError, match="scores would not be comparable"):
        begin()
    evaluator.close()


def test_without_a_place_for_a_worker_the_search_ends_when_patience_does(tmp_path: Path) -> None:
    evaluator = RayEvaluator(Build(tmp_path), workers=1, cpus_per_worker=3, **HERE, patience=0.3)  # type: ignore[arg-type]
    with pytest.raises(EvomergeError, match=r"no worker has found a place for 0\.3 s; a node with 3 CPUs"):
        evaluator.fingerprint("search")
    evaluator.close()


def test_workers_killed_at_random_change_nothing(tmp_path: Path) -> None:
    """An ordered search through Ray ends with the ledger of an undisturbed one in this process."""
    plan = Plan("cma_es", evaluations=120, in_flight=None)
    session(tmp_path / "whole", Plan("cma_es", evaluations=120, seconds=0.0))
    # A candidate may meet two of the killings: here that says nothing about it.
    evaluator = RayEvaluator(Build(tmp_path, Weighing), workers=2, **HERE, tries=10)  # type: ignore[arg-type]
    rng, kills, over = np.random.default_rng(7), [0], threading.Event()
    evaluator.fingerprint("search")

    def kill() -> None:
        while kills[0] < 6 and not over.wait(0.1 + 0.3 * float(rng.random())):
            pids = [actor["Pid"] for actor in _actors()]
            if pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(rng.choice(pids)), signal.SIGKILL)
                    kills[0] += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        session(tmp_path / "killed", plan, evaluator=evaluator)
    finally:
        over.set()
        killer.join()
        evaluator.close()
    assert kills[0] >= 3
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    events = [e for e in read_ledger(RunFolder(tmp_path / "killed")) if e.get("split") == "search"]
    for kind in ("asked", "told"):
        assert [e["candidate"] for e in events if e["event"] == kind] == list(range(5 + 120))


def _actors() -> list[dict[str, Any]]:
    from ray._private.state import actors

    return [
        actor | actor["Address"] | {"Pid": actor["Pid"]} for actor in actors().values() if actor["State"] == "ALIVE"
    ]


def test_more_workers_than_this_machine_holds_are_refused(tmp_path: Path) -> None:
    evaluator = RayEvaluator(Build(tmp_path), workers=64)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="64 workers with 1 CPUs and 0 GPUs each; this machine has room for 2"):
        evaluator.submit(Candidate(0, None))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"workers": 0}, "workers=0"),
        ({"workers": "many"}, "workers=many"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker is 1.5"),
        ({"timeout": 0}, "timeout is 0"),
        ({"tries": 0}, "tries=0"),
    ],
)
def test_senseless_settings_are_refused(wrong: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        RayEvaluator(Build(tmp_path), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", r"nothing answers at evaluator.address=127\.0\.0\.1:1 \(Connection refused\)"),
        ("ray://127.0.0.1:1", "run on a node of the cluster"),
        ("127.0.0.1:port", "the head's host:port"),
    ],
)
def test_an_address_where_nothing_is_says_so_at_once(address: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        RayEvaluator(Build(tmp_path), address=address)._cluster._require_listener(address)  # type: ignore[arg-type]

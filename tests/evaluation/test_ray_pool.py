"""Ray actors, with workers that die. One Ray for all tests of this file: starting it takes seconds."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, PoolError
from evomerge.evaluation.caching import CacheSettings
from evomerge.evaluation.ray_pool import RayEvaluator

pytestmark = pytest.mark.slow


class Worker:
    """Dies, once or always, on the candidates whose files say so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def evaluate(self, candidate: Candidate, split: str) -> Evaluation:
        order = self.folder / str(candidate.id)
        if order.exists():
            if order.read_text() == "once":
                order.unlink()
            os._exit(1)
        return Evaluation(candidate.id, "ok", objectives={"pid": float(os.getpid())})


class Build:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *, device: str, threads: int | None, cache: CacheSettings) -> Any:
        if device == "broken":
            raise PoolError("no folder math", "", "look again")
        return Worker(self.folder)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    # The workers cannot import this file: its classes travel whole.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def evaluator(tmp_path: Path) -> Iterator[RayEvaluator]:
    started = RayEvaluator(Build(tmp_path), workers=2, address="auto")
    yield started
    started.close()


def results(evaluator: RayEvaluator, count: int) -> dict[int, Evaluation]:
    for number in range(count):
        evaluator.submit(Candidate(number, None))
    return {evaluation.candidate: evaluation for evaluation in (evaluator.collect() for _ in range(count))}


def test_every_candidate_comes_back_once_from_two_processes(evaluator: RayEvaluator) -> None:
    found = results(evaluator, 20)
    assert sorted(found) == list(range(20))
    assert len({evaluation.objectives["pid"] for evaluation in found.values()} - {float(os.getpid())}) == 2


def test_a_worker_that_dies_is_replaced_and_its_candidate_tried_again(evaluator: RayEvaluator, tmp_path: Path) -> None:
    (tmp_path / "3").write_text("once")
    found = results(evaluator, 8)
    assert all(evaluation.ok for evaluation in found.values())
    assert sorted(found) == list(range(8))


def test_a_candidate_that_kills_every_worker_fails_alone(evaluator: RayEvaluator, tmp_path: Path) -> None:
    (tmp_path / "2").write_text("always")
    found = results(evaluator, 8)
    assert {number for number, evaluation in found.items() if not evaluation.ok} == {2}
    assert found[2].error.startswith("its worker died 2 times")


def test_a_worker_that_cannot_be_built_gives_its_own_error(tmp_path: Path) -> None:
    evaluator = RayEvaluator(Build(tmp_path), workers=1, address="auto", device="broken")
    evaluator.submit(Candidate(0, None))
    with pytest.raises(PoolError, match="no folder math; look again"):
        evaluator.collect()
    evaluator.close()


def test_more_workers_than_the_cluster_holds_are_refused(tmp_path: Path) -> None:
    evaluator = RayEvaluator(Build(tmp_path), workers=64, address="auto")
    with pytest.raises(ConfigError, match="64 workers need 64 CPUs; the cluster has 2"):
        evaluator.submit(Candidate(0, None))


def test_senseless_resources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers=0"):
        RayEvaluator(Build(tmp_path), workers=0)

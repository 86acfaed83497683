"""Where Ray puts workers on machines with GPUs; Ray is told of GPUs that are not there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, DeviceLostError, EvomergeError
from evomerge.evaluation import ray_workers
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.limits import check_gpus
from evomerge.evaluation.ray_pool import RayEvaluator
from evomerge.evaluation.ray_workers import _given

HERE: Any = {"address": "auto"}


class Fitness:
    def fingerprint(self) -> str:
        return "sha256:same"


class Worker:
    """Says what it was given; its GPU fails on candidates that a file names, once or always."""

    def __init__(self, folder: Path, device: str, cache: CacheSettings) -> None:
        self.folder, self.device, self.cache = folder, device, cache

    def fingerprint(self, split: str) -> str:
        return self.fitness(split).fingerprint()

    def fitness(self, split: str) -> Fitness:
        stuck = self.folder / "stuck"
        if stuck.exists():
            stuck.unlink()
            time.sleep(600)
        return Fitness()

    def evaluate(self, candidate: Candidate, split: Any) -> Evaluation:
        order = self.folder / str(candidate.id)
        if order.exists():
            if order.read_text() == "once":
                order.unlink()
            raise DeviceLostError("the GPU failed: device-side assert triggered")
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        given = f"{self.device} of {seen}, {self.cache.sharing} share, {self.cache.shared}"
        given += f", group of {len(self.cache.group)}" if self.cache.group else ""
        return Evaluation(candidate.id, "ok", split, objectives={"pid": float(os.getpid())}, error=given)

    def stage(self) -> tuple[str, int, int]:
        return "", 0, 0

    def close(self) -> None: ...


class Build:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *, device: str, threads: int | None, cache: CacheSettings) -> Any:
        return Worker(self.folder, device, cache)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def given(folder: Path, **settings: Any) -> tuple[int, set[str]]:
    """How many workers there are, and what they say."""
    evaluator = RayEvaluator(Build(folder), **HERE, **settings)  # type: ignore[arg-type]
    try:
        evaluator.fingerprint("search")
        for number in range(16):
            evaluator.submit(Candidate(number, None))
        return evaluator.slots, {evaluator.collect().error for _ in range(16)}
    finally:
        evaluator.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "workers", "said"),
    [
        ({"workers": "auto"}, 2, {"auto of 0, 1 share, off", "auto of 1, 1 share, off"}),
        ({"workers": 1}, 1, {"auto of 0, 1 share, off"}),
        ({"workers": "auto", "gpus_per_worker": 0.5}, 4, {"auto of 0, 2 share, off", "auto of 1, 2 share, off"}),
        ({"workers": "auto", "gpus_per_worker": 2}, 1, {"spread of 0,1, 1 share, off"}),
        ({"workers": 2, "gpus_per_worker": 0}, 2, {"cpu of none, 1 share, memory"}),
        ({"workers": 2, "device": "cpu"}, 2, {"cpu of none, 1 share, memory"}),
        ({"workers": 1, "shared_cache": "disk"}, 1, {"auto of 0, 1 share, disk"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),  # sets have no order to go by
)
def test_workers_and_the_gpus_they_see(
    cluster: None,
    settings: dict[str, Any],
    workers: int,
    said: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found, answers = given(tmp_path, **settings)
    assert found == workers
    assert answers <= said


def _groups() -> list[dict[str, Any]]:
    return [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


@pytest.mark.slow
def test_an_engine_over_several_gpus_has_a_group_of_them_while_its_worker_lives(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings: Any = {"engine": "vllm", "gpus_per_worker": 2, "cpus_per_worker": 3}
    short = RayEvaluator(Build(tmp_path), **HERE, **settings | {"gpus_per_worker": 3})  # type: ignore[arg-type]
    assert short.unplaced() == (
        "no worker has a place: each asks for 3 CPUs and 3 GPUs of one node, the nodes of the cluster have 2 GPUs and "
        "4 CPUs; lower evaluator.workers, gpus_per_worker or cpus_per_worker; they start when nodes join that have room"
    )
    assert ray.is_initialized()
    (tmp_path / "1").write_text("once")
    evaluator = RayEvaluator(Build(tmp_path), workers=2, **HERE, **settings)  # type: ignore[arg-type]
    evaluator.submit(Candidate(0, None))
    first = evaluator.collect()
    assert first.error == "spread of none, 1 share, off, group of 2"  # its engine's processes have the GPUs
    (made,) = [group for group in _groups() if group["state"] == "CREATED"]
    assert (made["strategy"], made["bundles"]) == ("STRICT_PACK", {0: {"CPU": 3.0, "GPU": 1.0}, 1: {"GPU": 1.0}})
    assert ray.available_resources().get("GPU", 0) == 0
    assert [(work.worker, work.stage) for work in evaluator.work()] == [
        ("worker 1", ""),
        ("worker 2", "waiting for 3 CPUs and 2 GPUs of one node"),
    ]
    evaluator.submit(Candidate(1, None))  # ends worker 1, whose GPUs go to the one that waited, or that takes its place
    placed = set[str]()
    for _ in range(600):
        evaluator._step()
        placed = {work.worker for work in evaluator.work() if not work.stage.startswith("waiting")}
        if placed and placed != {"worker 1"}:
            break
    assert placed in ({"worker 2"}, {"worker 3"})
    assert [group["state"] for group in _groups()].count("CREATED") == 1
    assert made["placement_group_id"] not in [group["placement_group_id"] for group in _groups()]
    evaluator.close()  # neither has begun, and one has no place
    assert _groups() == []


@pytest.mark.slow
def test_a_worker_whose_gpu_failed_is_replaced(cluster: None, tmp_path: Path) -> None:
    evaluator = RayEvaluator(Build(tmp_path), workers=2, **HERE, tries=2)  # type: ignore[arg-type]
    (tmp_path / "5").write_text("once")
    (tmp_path / "9").write_text("always")
    evaluator.fingerprint("search")
    for number in range(20):
        evaluator.submit(Candidate(number, None))
    found = {evaluation.candidate: evaluation for evaluation in (evaluator.collect() for _ in range(20))}
    evaluator.close()
    assert [number for number, evaluation in found.items() if not evaluation.ok] == [9]
    assert found[9].error == "its worker died 2 times: the GPU failed: device-side assert triggered"
    assert len({evaluation.objectives["pid"] for evaluation in found.values() if evaluation.ok}) > 2


@pytest.mark.slow
def test_a_worker_that_never_begins_is_replaced(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "LONGEST_START", 8.0)
    monkeypatch.setattr(ray_workers, "_BACKOFF", 0.1)
    (tmp_path / "stuck").touch()
    evaluator = RayEvaluator(Build(tmp_path), workers=1, **HERE)  # type: ignore[arg-type]
    evaluator.submit(Candidate(0, None))
    assert evaluator.collect().ok
    evaluator.close()


@pytest.mark.slow
def test_more_workers_than_gpus_say_how_to_share(cluster: None, tmp_path: Path) -> None:
    evaluator = RayEvaluator(Build(tmp_path), workers=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"3 workers with 1 CPUs and 1 GPUs each; .*gpus_per_worker=0\.5"):
        evaluator.submit(Candidate(0, None))


@pytest.mark.parametrize(
    ("gpus", "device", "reason"),
    [
        (-1, "auto", "gpus_per_worker is -1"),
        (1.5, "auto", "gpus_per_worker is 1.5"),
        (float("nan"), "auto", "gpus_per_worker is nan"),
        (0, "cuda", "every worker on the same GPU"),
        (0, "spread", "every worker on the same GPU"),
        (1, "cpu", "workers on the processor need none"),
    ],
)
def test_gpus_that_no_worker_can_have(gpus: float, device: str, reason: str) -> None:
    with pytest.raises(EvomergeError, match=reason):
        check_gpus(gpus, device)


def test_gpus_that_a_worker_can_have() -> None:
    for gpus, device in ((None, "auto"), (0, "auto"), (0, "cpu"), (0.25, "auto"), (1, "cuda"), (4, "spread")):
        check_gpus(gpus, device)
    assert [_given("auto", gpus) for gpus in (0, 0.5, 1, 2)] == ["cpu", "auto", "auto", "spread"]
    assert _given("cuda:1", 1) == "cuda:1"


def test_nothing_is_shared_through_the_host_unless_somebody_says_so() -> None:
    assert CacheSettings.of("auto", "auto", "auto", workers=4).shared == "memory"
    assert CacheSettings.of("auto", "auto", "auto", workers=4).on_gpus().shared == "off"
    asked = CacheSettings.of("auto", "memory", "auto", workers=4, gpu="24GB").on_gpus(2)
    assert (asked.shared, asked.sharing, asked.workers, asked.gpu) == ("memory", 2, 4, 24 * 10**9)


def test_a_gpu_named_by_a_number_without_a_unit_is_refused() -> None:
    for given in (24, "80", "0GB"):
        with pytest.raises(ConfigError, match=rf"evaluator\.gpu is {given!r}; null, or a size such as"):
            CacheSettings.of("auto", "auto", "auto", gpu=given)
    assert CacheSettings.of("auto", "auto", "auto", gpu=24 * 10**9).gpu == 24 * 10**9

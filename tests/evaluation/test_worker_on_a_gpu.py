"""A worker and whole searches on a pretended GPU: what it does when memory, time or the device runs out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_gpu import PretendedGpu

import evomerge
from evomerge.candidate import Candidate
from evomerge.demo.pool import make_demo_pool
from evomerge.errors import DeviceLostError
from evomerge.evaluation import devices
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.devices import await_memory, idle_gpus
from evomerge.evaluation.local import LocalEvaluator
from evomerge.evaluation.worker import Worker
from evomerge.models.memory import device_lost, out_of_memory
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.objectives import Objective
from evomerge.protocols import Scores

ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made before there is a GPU: training is not for a pretended one."""
    return make_demo_pool(tmp_path_factory.mktemp("demo") / "pool", 0, quick=True, progress=False)


@pytest.fixture
def pool(llamas: Callable[..., dict[str, Path]]) -> Pool:
    return open_pool({name: str(folder) for name, folder in llamas(layers=8).items()}, base="base")


class Forwards:
    """Scores by one forward of a batch; a hook may misbehave before it. Holds on to the model, as lm-eval's does."""

    objectives = (Objective("score"),)

    def __init__(self, before: Callable[[int], None] = lambda run: None, batch: int = 8) -> None:
        self.before, self.batch, self.runs = before, batch, 0
        self.model: Any = None

    def check(self) -> None: ...

    def prepare(self, model: Any) -> None:
        self.model = model
        self.ids = torch.arange(self.batch * 16, device=model.device).remainder(40).view(self.batch, 16)

    def run(self, model: Any, part: Any = None) -> Scores:
        self.runs += 1
        self.before(self.runs)
        return Scores({"score": float(model.module(self.ids, use_cache=False).logits.double().sum())})

    def fingerprint(self) -> str:
        return "sha256:forwards"


def recipes(pool: Pool, count: int) -> list[Any]:
    return [pool.info.linear({"a": 1 - i / count, "b": i / count}) for i in range(count)]


@pytest.mark.slow
def test_a_whole_search(demo: Path, tmp_path: Path, gpu: PretendedGpu) -> None:
    overrides = ["experiment=demo", f"pool.root='{demo}'", "search.evaluations=3", "strategy.popsize=3"]
    overrides += ["display=quiet", "fitness.limit=8", "held_out.limit=8"]
    there = evomerge.search(*overrides, "evaluator.device=cuda", f"run_dir='{tmp_path / 'there'}'")
    assert not gpu.counts.wasted
    assert gpu.counts.copies["evomerge/merge/execution/sources.py _placed"] > 0
    here = evomerge.search(*overrides, "evaluator.device=cpu", f"run_dir='{tmp_path / 'here'}'")
    assert not there.evaluations["error"].fillna("").any()
    assert there.evaluations["score"].tolist() == pytest.approx(here.evaluations["score"].tolist(), abs=0.02)


def test_a_local_timeout_frees_the_model_before_it_makes_another(pool: Pool, gpu: PretendedGpu) -> None:
    def slow(run: int) -> None:
        if run == 2:
            time.sleep(30)

    fitness, built = Forwards(slow), list[int]()

    def build(*, device: str, threads: int | None, cache: CacheSettings) -> Worker:
        built.append(gpu.used)
        gpu.reset()
        return Worker(pool, {"search": fitness}, device=device, threads=threads, cache=cache)

    evaluator = LocalEvaluator(build, device="cuda", timeout=3.0)
    found = []
    for number, recipe in enumerate(recipes(pool, 3)):
        evaluator.submit(Candidate(number, recipe))
        found.append(evaluator.collect())
    assert [evaluation.ok for evaluation in found] == [True, False, True]
    assert "evaluator.timeout=3 s" in found[1].error
    assert len(built) == 2
    assert built[1] < pool.checkpoints["base"].nbytes // 20


def test_a_device_that_failed_ends_the_worker_and_not_the_candidate(pool: Pool, gpu: PretendedGpu) -> None:
    def fail(run: int) -> None:
        if run == 2:
            raise RuntimeError(ASSERT)

    worker = Worker(pool, {"search": Forwards(fail)}, device="cuda")
    todo = recipes(pool, 2)
    assert worker.evaluate(Candidate(0, todo[0])).ok
    with pytest.raises(DeviceLostError, match=r"device-side assert triggered .*; `evomerge resume RUN` goes on"):
        worker.evaluate(Candidate(1, todo[1]))


@pytest.mark.parametrize(
    ("text", "memory", "lost"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", True, False),
        ("CUDA error: out of memory", True, False),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True, False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True, False),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", True, False),
        (ASSERT, False, True),
        ("CUDA error: an illegal memory access was encountered", False, True),
        ("CUDA error: uncorrectable ECC error encountered", False, True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", False, True),
        ("The size of tensor a (3) must match the size of tensor b (4)", False, False),
    ],
)
def test_what_errors_of_a_device_mean(text: str, memory: bool, lost: bool) -> None:
    assert (out_of_memory(RuntimeError(text)), device_lost(RuntimeError(text))) == (memory, lost)
    wrapped = ValueError("the task broke")
    wrapped.__cause__ = RuntimeError(text)
    assert device_lost(wrapped) == lost


def test_gpus_left_idle_are_said(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert idle_gpus("auto") == ""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert "evaluator=local uses one of 4 GPUs: evaluator=ray evaluator.workers=4 uses all" in idle_gpus("auto")
    assert idle_gpus("cuda:1") == idle_gpus("cpu") == ""


def test_a_worker_waits_while_memory_is_being_given_back(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    free = iter([20, 20, 60, 95, 100])
    monkeypatch.setattr(devices.time, "sleep", lambda seconds: looks.append(1))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (next(free), 100))
    await_memory("cuda")
    assert len(looks) == 3
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (50, 100))
    await_memory("cuda")  # another worker has the rest, and keeps it
    assert len(looks) == 3 + 1 + 3
    await_memory("cpu")
    assert gc.isenabled()

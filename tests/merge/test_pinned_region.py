"""Sources pinned once for all workers of a machine, on a pretended GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from merge.gpu_recipes import small_pool
from pretended_gpu import PretendedGpu

from evomerge.merge.execution import pinned_region, sources
from evomerge.merge.execution.pinned_region import PinnedRegion, open_region
from evomerge.merge.execution.sources import Placement
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.pool import Pool

MUCH = 10**9


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(sources, "open_region", lambda pool, limit: open_region(pool, limit, folder))
    return folder


@pytest.fixture
def pool(llamas: Callable[..., dict[str, Path]]) -> Pool:
    return small_pool(llamas(layers=1, dtype=torch.bfloat16))


def linear(pool: Pool, share: float) -> object:
    return make_plan(pool.info.linear({"a": share, "b": 1 - share}), pool)


def test_workers_share_what_is_pinned(pool: Pool, gpu: PretendedGpu, shm: Path) -> None:
    workers = [Resident(pool, "cuda", placement=Placement(0, MUCH, MUCH), cache=0) for _ in range(2)]
    here = Resident(pool, placement=Placement(0, 0, 0), cache=0)
    tensors = len(pool.layout.parameters)
    for worker, share in zip(workers * 2, (0.3, 0.6, 0.7, 0.2), strict=True):
        gpu.reset()
        worker.apply(linear(pool, share))
        here.apply(linear(pool, share))
        assert (gpu.counts.copies.total(), gpu.counts.pageable.total()) == (2 * tensors, 0)
        theirs = dict(here.model.module.named_parameters())
        assert all(torch.equal(p.cpu(), theirs[name]) for name, p in worker.model.module.named_parameters())
    assert gpu.cudart.most == 4 * tensors  # each in both, once
    assert [worker.sources.host_bytes for worker in workers] == [0, 0]
    (folder,) = shm.iterdir()
    regions = [worker.sources._region for worker in workers]
    assert regions[0] is not None
    assert {region.used for region in regions if region is not None} == {2 * pool.checkpoints["a"].nbytes}
    workers[0].close()
    assert len(gpu.cudart.registered) == 2 * tensors
    assert folder.exists()
    workers[1].close()
    assert not gpu.cudart.registered
    assert list(shm.iterdir()) == []


def test_what_has_no_room_is_mapped_and_the_first_worker_says_how_much_there_is(
    pool: Pool, gpu: PretendedGpu, shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "free_memory", lambda device: 4 * pool.checkpoints["a"].nbytes)
    first = Resident(pool, "cuda", placement=Placement(0, MUCH, MUCH), cache=0)
    first.apply(linear(pool, 0.3))
    monkeypatch.setattr(sources, "free_memory", lambda device: MUCH)
    second = Resident(pool, "cuda", placement=Placement(0, MUCH, MUCH), cache=0)
    for worker in (first, second):
        gpu.reset()
        worker.apply(linear(pool, 0.6))
        assert 0 < gpu.counts.pageable.total() < gpu.counts.copies.total()
        region = worker.sources._region
        assert region is not None
        assert region.used <= region.limit == pool.checkpoints["a"].nbytes
        assert worker.sources.host_bytes == 0


def test_without_registration_every_worker_pins_its_own(
    pool: Pool, gpu: PretendedGpu, shm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.cudart.code = 801
    worker = Resident(pool, "cuda", placement=Placement(0, MUCH, MUCH), cache=0)
    gpu.reset()
    worker.apply(linear(pool, 0.3))
    assert gpu.counts.pageable.total() == 0
    assert worker.sources.host_bytes == 2 * pool.checkpoints["a"].nbytes
    assert caplog.text.count("cudaHostRegister returned 801") == 1


def test_where_shared_memory_is_too_small_every_worker_pins_its_own(
    pool: Pool, gpu: PretendedGpu, shm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pinned_region.shutil, "disk_usage", lambda path: _Usage(1000))
    worker = Resident(pool, "cuda", placement=Placement(0, MUCH, MUCH), cache=0)
    gpu.reset()
    worker.apply(linear(pool, 0.3))
    assert gpu.counts.pageable.total() == 0
    assert worker.sources.host_bytes == 2 * pool.checkpoints["a"].nbytes
    assert "every worker pins sources of its own" in caplog.text
    assert list(shm.iterdir()) == []


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_other_files_are_another_region(pool: Pool, gpu: PretendedGpu, shm: Path) -> None:
    one, again = (open_region(pool, MUCH, shm) for _ in range(2))
    assert one is not None
    assert again is not None
    assert one.folder == again.folder
    file = pool.folder("a") / "model.safetensors"
    os.utime(file, ns=(1, 1))
    other = open_region(pool, MUCH, shm)
    assert other is not None
    assert other.folder != one.folder
    for region in (one, again, other):
        region.close()
        region.close()
    assert list(shm.iterdir()) == []


@pytest.mark.slow
def test_a_region_that_nobody_closed_is_removed(pool: Pool, gpu: PretendedGpu, shm: Path) -> None:
    region = open_region(pool, MUCH, shm)
    assert region is not None
    del region
    assert list(shm.iterdir()) == []
    script = (
        "import sys, time; from pathlib import Path\n"
        "from evomerge.merge.execution.pinned_region import PinnedRegion\n"
        "region = PinnedRegion(Path(sys.argv[1]), [('file', 0, 5000)], 10000)\n"
        "print('there', flush=True); time.sleep(600)\n"
    )
    folder = shm / f"evomerge-{os.getuid()}-sources-killed"
    with subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"there\n"
        ours = open_region(pool, MUCH, shm)
        assert ours is not None
        assert folder.exists()  # somebody uses it
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        ours.close()
    ours = open_region(pool, MUCH, shm)
    assert ours is not None
    assert not folder.exists()
    ours.close()


def test_what_a_killed_worker_was_writing_is_written_again(shm: Path, gpu: PretendedGpu) -> None:
    slots = [("file", 0, 4096), ("file", 4096, 4096)]
    first, second = (PinnedRegion(shm / "region", slots, 10**6) for _ in range(2))
    info = pinned_region.TensorInfo("x", "F32", (1024,), Path("file"), 4096, 0)
    values = torch.arange(1024.0)
    assert torch.equal(first.pinned(info, values), values)
    # What is marked is taken as it is; what is not is copied, whatever lies there.
    second._there[0] = 0
    np.frombuffer(second._memory, np.float32, 1024)[:] = 7
    assert torch.equal(second.pinned(info, values), values)
    assert torch.equal(first.pinned(info, values * 0), values)
    unknown = pinned_region.TensorInfo("x", "F32", (1024,), Path("other"), 4096, 0)
    assert first.pinned(unknown, values) is None

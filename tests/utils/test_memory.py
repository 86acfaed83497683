"""How much memory there is: of a machine, and of containers by either version of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.utils.memory import MemoryPart, free_host_memory, machine_memory, peak, process_memory


def machine(root: Path, groups: str = "0::/\n") -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    700 kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    return root


def limit(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)


def test_a_machine_without_limits(tmp_path: Path) -> None:
    root = machine(tmp_path)
    limit(root / "sys/fs/cgroup", {"memory.max": "max\n", "memory.current": "5000\n"})
    assert machine_memory(root) == 1000 * 1024
    assert free_host_memory(root) == 700 * 1024


def test_a_limit_of_the_second_version_with_what_files_take(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/slurm/job\n")
    limit(root / "sys/fs/cgroup/slurm", {"memory.max": "400000\n", "memory.current": "350000\n"})
    limit(root / "sys/fs/cgroup/slurm/job", {"memory.max": "max\n"})
    assert machine_memory(root) == 400_000
    assert free_host_memory(root) == 50_000
    limit(root / "sys/fs/cgroup/slurm", {"memory.stat": "anon 1\ninactive_file 100000\n"})
    assert free_host_memory(root) == 150_000


@pytest.mark.parametrize("path", ["docker/abc", ""])
def test_a_limit_of_the_first_version(tmp_path: Path, path: str) -> None:
    """Within a container the path is the host's, and its group is mounted at the top."""
    root = machine(tmp_path, "9:cpu:/\n4:memory:/docker/abc\n0::/\n")
    files = {"memory.limit_in_bytes": "300000\n", "memory.usage_in_bytes": "100000\n"}
    limit(root / "sys/fs/cgroup/memory" / path, files)
    assert machine_memory(root) == 300_000
    assert free_host_memory(root) == 200_000


def test_no_limit_of_the_first_version_is_a_huge_number(tmp_path: Path) -> None:
    root = machine(tmp_path, "4:memory:/\n")
    limit(root / "sys/fs/cgroup/memory", {"memory.limit_in_bytes": "9223372036854771712\n"})
    assert machine_memory(root) == 1000 * 1024


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    assert machine_memory(tmp_path) == 0
    assert free_host_memory(tmp_path) > 10**7


def test_this_process_is_within_this_machine() -> None:
    assert 10**6 < process_memory() < machine_memory()


def test_merging_and_scoring_are_never_at_once() -> None:
    parts = [
        MemoryPart("model", 10, ""),
        MemoryPart("cache", 1, "", most=5),
        MemoryPart("scratch", 7, "", during="merging"),
        MemoryPart("forwards", 4, "", during="scoring"),
    ]
    assert peak(parts) == 18
    assert peak(parts, bounds=True) == 22

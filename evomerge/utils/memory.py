"""What the parts of a search take of memory, and how much of it this machine, or its container, has."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Place = Literal["host", "device"]
During = Literal["always", "merging", "scoring"]


@dataclass(frozen=True)
class MemoryPart:
    """Memory that one part of a worker takes, as the code that allocates it says.

    Attributes:
        name: one word: ``model``, ``cache``.
        nbytes: what it comes to take.
        text: what it is.
        key: the configuration key that makes it smaller; empty where none does.
        most: bytes that it may grow to; ``None`` where that is `nbytes`.
        place: in main memory, or on the accelerator.
        during: ``always``; or only while a candidate is merged, or scored: those two are never there together.
        per_machine: whether all workers of a machine share it.
    """

    name: str
    nbytes: int
    text: str
    key: str = ""
    most: int | None = None
    place: Place = "host"
    during: During = "always"
    per_machine: bool = False

    @property
    def bound(self) -> int:
        """Bytes at most."""
        return self.nbytes if self.most is None else max(self.most, self.nbytes)


def peak(parts: Sequence[MemoryPart], *, bounds: bool = False) -> int:
    """Bytes that parts of one place take together at the worst moment.

    Args:
        parts: of one worker, or of what a machine's workers share.
        bounds: count what each may grow to.
    """
    of = {"always": 0, "merging": 0, "scoring": 0}
    for part in parts:
        of[part.during] += part.bound if bounds else part.nbytes
    return of["always"] + max(of["merging"], of["scoring"])


def process_memory() -> int:
    """Bytes of main memory that this process has, mapped files included; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def machine_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory that this process may use: the machine's, or its container's limit; 0 where unknown.

    Args:
        root: of the file system that has ``proc`` and ``sys``.
    """
    return min((total for total, _ in _limits(root)), default=0)


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory that are free, to this process: of the machine and within its container's limit.

    What files have in the page cache counts as free. Half of the machine's where the system does not say.
    """
    found = [free for _, free in _limits(root)]
    if found:
        return max(0, min(found))
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return 0


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """All and free bytes of the machine, and of each control group that this process is in and that has a limit."""
    machine = _numbers(root / "proc/meminfo")
    if "MemTotal:" in machine:
        yield machine["MemTotal:"] * 1024, machine.get("MemAvailable:", machine["MemTotal:"] // 2) * 1024
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in groups:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        folder = top / path.lstrip("/")
        # Within a container the path may be that of the host, and its group what is mounted at the top.
        for group in (folder, *folder.parents):
            if not group.is_relative_to(top):
                break
            most, now = _bytes(group / limit), _bytes(group / used)
            if most is not None and ("MemTotal:" not in machine or most < machine["MemTotal:"] * 1024):
                cached = _numbers(group / "memory.stat")
                files = cached.get("total_inactive_file", cached.get("inactive_file", 0))
                yield most, most - (now or 0) + files


def _bytes(path: Path) -> int | None:
    """The number in a file; ``None`` where there is none, as for ``max``."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _numbers(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    found: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return found
    for words in map(str.split, lines):
        if len(words) > 1 and words[1].isdigit():
            found[words[0]] = int(words[1])
    return found

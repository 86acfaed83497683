"""A fitness of a user's own, with something that goes wrong during one of its runs: imported by name by a search."""

import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from evomerge.objectives import Objective
from evomerge.protocols import Scores


class Norm:
    """Scores a model by its parameters.

    Args:
        fault: a method's name.
        at: during which run it happens, counted from 1 in the whole process.
        path: what it happens to.
    """

    objectives = (Objective("norm"),)
    runs = 0

    def __init__(self, fault: str = "", at: int = 0, path: str = "") -> None:
        self.fault, self.at, self.path = fault, at, Path(path)

    def check(self) -> None: ...

    def cautions(self) -> list[str]:
        return []

    def prepare(self, model: Any) -> None: ...

    def fingerprint(self) -> str:
        return "sha256:norm"

    def run(self, model: Any, part: Any = None) -> Scores:
        Norm.runs += 1
        value = sum(float((p.double() - 0.01).square().sum()) for p in model.module.parameters())
        if self.fault and Norm.runs == self.at:
            value = getattr(self, self.fault)() or value
        return Scores({"norm": value}, {"task/norm": value}, {}, {"model": 0.0})

    def mistake(self) -> None:
        raise KeyError("no such column\nin two lines")

    def nan(self) -> float:
        return float("nan")

    def long(self) -> None:
        time.sleep(60)

    def truncate(self) -> None:
        os.truncate(self.path, self.path.stat().st_size // 2)

    def touch(self) -> None:
        os.utime(self.path, (0, 0))

    def remove(self) -> None:
        shutil.rmtree(self.path)

    def fill(self) -> None:
        """Write until the disk is full."""
        with self.path.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    def memory(self) -> None:
        """Ask for a gigabyte where there is a limit of a hundred megabytes more than there is."""
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 10**8, before[1]))
        try:
            torch.zeros(2**28)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

"""Searches of `killed_runs` whose candidates are evaluated by Ray, and small clusters for them.

``python ray_runs.py RUN ADDRESS`` begins a search, or goes on with it, and ends with the status that `evomerge` would.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.candidate import Candidate, Evaluation, Split


class Scorer:
    """A worker that scores as `killed_runs.Workers` do; it is its own fitness and its own builder.

    Args:
        seconds: the longest evaluation.
        hashed: as for `Workers`.
        modules: files that have to be importable where it works, and that nobody has in their path.
    """

    def __init__(self, seconds: float, hashed: bool, modules: Sequence[Path] = ()) -> None:
        self._seconds, self._hashed = seconds, hashed
        self._rng = np.random.default_rng()
        self._names = [file.stem for file in modules]
        self.modules = [str(file) for file in modules]

    def __call__(self, **_: Any) -> Any:
        """The worker."""
        for name in self._names:
            importlib.import_module(name)
        return self

    def fitness(self, split: Split) -> Scorer:
        """Itself."""
        return self

    def fingerprint(self, split: Split = "search") -> str:
        """Always the same."""
        return "sha256:durable"

    def evaluate(self, candidate: Candidate, split: Split) -> Evaluation:
        """The score, after a time of chance."""
        from killed_runs import Workers

        time.sleep(self._seconds * float(self._rng.random()))
        workers = Workers(1, 0.0, self._hashed)
        workers.submit(candidate, split)
        return workers.collect()

    def close(self) -> None:
        """Nothing is held."""


def evaluator(
    address: str | None, slots: int, seconds: float, hashed: bool, modules: Sequence[Path] = (), **settings: Any
) -> Any:
    """Workers of a cluster, each of one CPU."""
    from evomerge.evaluation.ray_pool import RayEvaluator

    scorer: Any = Scorer(seconds, hashed, modules)
    return RayEvaluator(scorer, workers=slots, address=address, shared_cache="off", **{"tries": 5, **settings})


def main() -> int:
    """One session."""
    from killed_runs import Plan, session

    from evomerge.errors import EvomergeError
    from evomerge.evaluation import ray_cluster

    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("address")
    parser.add_argument("--strategy", default="cma_es")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--in-flight", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.02)
    parser.add_argument("--gone", type=float, default=ray_cluster.GONE)
    parser.add_argument("--module", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    ray_cluster.GONE = given.gone
    plan = Plan(given.strategy, given.evaluations, given.workers, in_flight=given.in_flight, seconds=given.seconds)
    try:
        session(given.run, plan, evaluator=evaluator(given.address, given.workers, given.seconds, False, given.module))
    except EvomergeError as error:
        print(f"evomerge: error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command above in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


class Node:
    """One node of a Ray cluster, started with `ray start` as on a machine of its own.

    Args:
        folder: for Ray's files; short, since it holds sockets.
        cpus: how many the node says it has.
        head: address of the head; ``None`` for a node that is one.
    """

    def __init__(self, folder: Path, cpus: int, head: str | None = None) -> None:
        self.folder = folder
        self.address = head or f"127.0.0.1:{_free_port()}"
        before = self._raylets()
        where = ["--head", "--port", self.address.rpartition(":")[2]] if head is None else ["--address", self.address]
        more = ["--temp-dir", str(folder), "--include-dashboard", "false"] if head is None else []
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *where, *more, "--num-cpus", str(cpus)]
        command += ["--object-store-memory", "80000000", "--disable-usage-stats", "--node-ip-address", "127.0.0.1"]
        for _ in range(3):  # Ray gives a node 30 seconds, which may be too little for a machine that is busy
            done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
            self.raylets = self._raylets() - before
            if done.returncode == 0:
                return
            for pid in self.raylets if head is not None else _processes(str(folder)):
                _end(pid)
        raise RuntimeError(done.stdout + done.stderr)

    def _raylets(self) -> set[int]:
        return _processes("raylet/raylet", str(self.folder))

    def kill(self) -> None:
        """SIGKILL for the node's raylet: its workers end when they notice."""
        for pid in self.raylets:
            _end(pid)

    def actors(self) -> set[int]:
        """The processes of actors on the node."""
        found = _processes("ray::Actor")
        return {pid for pid in found if _parent(pid) in self.raylets}

    def kill_head(self) -> None:
        """SIGKILL for the cluster's head, not for the node's raylet."""
        for pid in _processes("gcs_server", str(self.folder)):
            _end(pid)

    def close(self) -> None:
        """End all that was started in the folder."""
        for pid in _processes(str(self.folder)):
            _end(pid)


_HERE = Path(__file__).resolve().parent
ENVIRONMENT = {
    **os.environ,
    "RAY_AUTH_MODE": "disabled",
    "PYTHONPATH": os.pathsep.join([str(_HERE.parents[1]), str(_HERE)]),
}
"""With it every process of a test agrees that there are no tokens, and can import this file and its neighbours."""


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def _processes(*words: str) -> set[int]:
    """Processes whose command line has all of these words."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "ray" in line and all(word in line for word in words):
            found.add(int(file.parent.name))
    return found - {os.getpid(), os.getppid()}


if __name__ == "__main__":
    import ray_runs  # by this name workers find its classes

    sys.exit(ray_runs.main())

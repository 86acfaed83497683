"""The command itself, killed at random instants of time and resumed: in processes forked from one that imported it."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.run.folder import RunFolder
from evomerge.run.ledger import canonical_events

POLL = 0.0005
LONGEST = 900.0
"""Seconds: a session that takes longer hangs."""


@dataclass(frozen=True)
class Session:
    """How a session ended.

    Attributes:
        killed: whether the kill met a living process.
        saving: whether a checkpoint was being written then.
        seconds: how long it ran.
        begun: seconds until it had written something.
    """

    killed: bool
    saving: bool
    seconds: float
    begun: float


def preload(modules: Iterable[str]) -> None:
    """Import what sessions need, so that they need not; what cannot be imported here is left to them."""
    for module in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)


def imported_by(path: Path) -> list[str]:
    """What a session that ended by itself had imported."""
    return path.with_suffix(".modules").read_text().split()


def run_command(path: Path, search: Sequence[str], resume: Sequence[str]) -> None:
    """Begin the run, or go on with it, as a terminal would."""
    from evomerge.cli.main import main

    os.setpgrp()  # what it starts dies with it
    log = (path.parent / f"{path.name}.log").open("a")
    sys.stdout = sys.stderr = log
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    if RunFolder(path).ledger.exists():
        arguments = ["resume", str(path), *resume]
    else:
        shutil.rmtree(path, ignore_errors=True)  # killed before there was a ledger
        arguments = ["search", f"run_dir='{path}'", *search]
    status = main(arguments)
    log.flush()
    path.with_suffix(".modules").write_text("\n".join(name for name in sys.modules if not name.startswith("__")))
    os._exit(status)


def session(
    path: Path, search: Sequence[str], resume: Sequence[str] = (), until: Callable[[float, float], bool] | None = None
) -> Session:
    """A session in a process of its own, killed with its children when `until` says so.

    It is given the seconds since the start and the seconds until something was written, 0 before.

    Raises:
        RuntimeError: it failed by itself, or hangs.
    """
    folder = RunFolder(path)
    size = folder.ledger.stat().st_size if folder.ledger.exists() else 0
    process: Any = multiprocessing.get_context("fork").Process(target=run_command, args=(path, search, resume))
    start = time.monotonic()
    process.start()
    begun = 0.0
    while process.is_alive():
        seconds = time.monotonic() - start
        if not begun and folder.ledger.exists() and folder.ledger.stat().st_size > size:
            begun = seconds
        if seconds > LONGEST or (until is not None and until(seconds, begun)):
            break
        time.sleep(POLL)
    seconds = time.monotonic() - start
    alive = bool(process.is_alive())
    saving = saving_now(path)
    if alive:
        for kill in (lambda: os.killpg(process.pid, signal.SIGKILL), lambda: os.kill(process.pid, signal.SIGKILL)):
            with contextlib.suppress(ProcessLookupError):
                kill()
    process.join()
    killed = alive and process.exitcode == -signal.SIGKILL
    if seconds > LONGEST or (not killed and process.exitcode != 0):
        raise RuntimeError(f"{path}: exit status {process.exitcode} after {seconds:.0f} s; see {path}.log")
    return Session(killed, saving and killed, seconds, begun)


def saving_now(path: Path) -> bool:
    """Whether a checkpoint is half written."""
    with contextlib.suppress(FileNotFoundError):
        return any(entry.name.endswith(".tmp") for entry in RunFolder(path).checkpoint.iterdir())
    return False


def run_killed(
    path: Path, search: Sequence[str], whole: Session, kills: int, rng: np.random.Generator, resume: Sequence[str] = ()
) -> list[Session]:
    """Run to the end through up to `kills` kills; returns those that met a living process.

    One kill in five comes while the process is still starting, at an instant uniform in time; the others after it has
    written something, at an instant uniform over somewhat more than their share of what follows. Every other of these
    waits for the next checkpoint to be half written.
    """
    share = 1.5 * (whole.seconds - whole.begun) / kills
    hits: list[Session] = []
    while len(hits) < kills:
        starting, wait = rng.random() < 0.2, bool(len(hits) % 2)
        instant = float(rng.uniform(0, whole.begun if starting else share))
        wait = wait and not starting

        def until(
            seconds: float, begun: float, instant: float = instant, wait: bool = wait, starting: bool = starting
        ) -> bool:
            if starting:
                return seconds >= instant
            return begun > 0 and seconds - begun >= instant and (not wait or saving_now(path))

        ended = session(path, search, resume, until)
        if not ended.killed:
            return hits
        hits.append(ended)
    session(path, search, resume)
    return hits


def content(path: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """What a run did, and what is in its ``best`` folder."""
    best = {str(file.relative_to(path)): file.read_bytes() for file in sorted((path / "best").rglob("*.*"))}
    return canonical_events(RunFolder(path)), best

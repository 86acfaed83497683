"""Trackers are told by threads of their own: what they raise, and how long they take, is no matter of the search."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from numbers import Real
from pathlib import Path
from typing import Any

from evomerge.errors import OutputError
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger
from evomerge.run.ledger_file import Event
from evomerge.trackers.tracker import Ending, TrackedRun, Tracker
from evomerge.utils.files import read_bounded, write_text_atomic

_LOG = logging.getLogger(__name__)
_WAITING = 10_000  # events that a slow tracker may be behind; it misses those that come when there are more
PATIENCE = 30.0
"""Seconds that a run waits for its trackers at its end."""


class Numbers:
    """Turns events into numbers by name.

    - ``objective/NAME``, ``METRIC``, ``seconds/STAGE``, ``candidate`` of every candidate that has scores;
    - ``best/OBJECTIVE`` when the winner changes, with ``front`` and ``hypervolume`` of several objectives;
    - ``failed``: how many candidates had none so far;
    - ``baseline/MODEL/OBJECTIVE`` on the search items, ``held_out/MODEL/METRIC`` on the others.
    """

    def __init__(self) -> None:
        self.step = 0
        self._failed = 0
        self._names: dict[tuple[Any, Any], list[str]] = {}
        self._objective = "objective"

    def see(self, event: Event) -> dict[str, float]:
        """The numbers of an event; none of most."""
        kind, key = event["event"], (event.get("candidate"), event.get("split"))
        if kind == "started":
            self._objective = next(iter(event.get("objectives") or {}), "objective")
        elif kind == "asked" and event.get("name") is not None:
            self._names.setdefault(key, []).append(str(event["name"]))
        elif kind == "told":
            return self._told(event, key)
        elif kind == "improved":
            found = {f"best/{self._objective}": event.get("objective")}
            return _finite({**found, "front": event.get("front"), "hypervolume": event.get("hypervolume")})
        return {}

    def _told(self, event: Event, key: tuple[Any, Any]) -> dict[str, float]:
        names = self._names.get(key)
        objectives, metrics = event.get("objectives") or {}, event.get("metrics") or {}
        if names:
            if key[1] == "held_out":
                return _finite(
                    {f"held_out/{name}/{metric}": v for name in names for metric, v in (metrics or objectives).items()}
                )
            return _finite({f"baseline/{name}/{metric}": v for name in names for metric, v in objectives.items()})
        self.step += 1
        if event.get("status") != "ok":
            self._failed += 1
            return {"failed": float(self._failed)}
        values = {f"objective/{name}": value for name, value in objectives.items()}
        values |= dict(metrics)
        values |= {f"seconds/{name}": value for name, value in (event.get("seconds") or {}).items()}
        return _finite({**values, "candidate": event.get("candidate")})


class BackgroundTracker:
    """An `observers.Observer` that hands the numbers of events to a tracker in a thread; see `tracking`."""

    def __init__(self, name: str, tracker: Tracker, run: TrackedRun, begun: Numbers) -> None:
        self._name, self._tracker, self._run, self._numbers = name, tracker, run, begun
        self._queue: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_WAITING)
        self._ending: Ending = "failed"
        self._missed = 0
        self._broken = self._begun = False
        self._thread = threading.Thread(target=self._work, name=f"evomerge-{name}", daemon=True)

    def __call__(self, event: Event) -> None:
        """Queue an event's numbers; the first event starts the thread: a run that is refused has none."""
        if not self._begun:
            self._begun = True
            self._thread.start()
        values = self._numbers.see(event)
        if event["event"] == "stopped":
            self._ending = "finished"
        elif event["event"] == "interrupted":
            self._ending = "interrupted"
        if values and not self._broken:
            try:
                self._queue.put_nowait((self._numbers.step, values))
            except queue.Full:
                self._missed += 1
                if self._missed == 1:
                    _LOG.warning("tracker %s is %d events behind, and misses some", self._name, _WAITING)

    def close(self, patience: float) -> None:
        """Wait until all is told, but not longer than `patience` seconds."""
        if not self._begun:
            return
        with suppress(queue.Full):
            self._queue.put(None, timeout=patience)
        self._thread.join(patience)
        if self._thread.is_alive():
            _LOG.warning("tracker %s has not finished after %g s and is left behind", self._name, patience)

    def _work(self) -> None:
        try:
            found = self._tracker.begin(self._run)
            if found is not None:
                _remember(self._run.folder, self._name, found)
            while (entry := self._queue.get()) is not None:
                self._tracker.log(*entry)
            self._tracker.end(self._ending)
        except Exception as error:
            self._broken = True
            reason = " ".join(str(error).split())[:200]
            _LOG.warning(
                "tracker %s failed (%s: %s); the search goes on without it", self._name, type(error).__name__, reason
            )
            _LOG.info("how tracker %s failed", self._name, exc_info=True)


@contextmanager
def tracking(
    trackers: Sequence[tuple[str, Tracker]],
    folder: RunFolder,
    config: Mapping[str, Any],
    *,
    resumed: bool = False,
    patience: float | None = None,
) -> Iterator[list[BackgroundTracker]]:
    """Start the trackers of a run, and end them with it.

    Args:
        trackers: by name.
        folder: the run folder, which is there.
        config: the whole configuration.
        resumed: whether the run goes on: what is in its ledger is known to the trackers.
        patience: seconds to wait for all of them at the end; `PATIENCE` by default.
    """
    if not trackers:
        yield []
        return
    name = str(config.get("name") or folder.path.resolve().name)
    known = _remembered(folder.path)
    started = []
    for tracker_name, tracker in trackers:
        numbers = Numbers()
        if resumed:
            for event in read_ledger(folder, on_torn=lambda torn: None):
                numbers.see(event)
        run = TrackedRun(folder.path.resolve(), name, config, known.get(tracker_name) if resumed else None)
        started.append(BackgroundTracker(tracker_name, tracker, run, numbers))
    try:
        yield started
    finally:
        for entry in started:
            entry.close((PATIENCE if patience is None else patience) / len(started))


_MEMORY = threading.Lock()


def _file(folder: Path) -> Path:
    return folder / "trackers.json"


def _remembered(folder: Path) -> dict[str, str]:
    try:
        content = json.loads(read_bounded(_file(folder), 2**20, follow=False))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in content.items()} if isinstance(content, dict) else {}


def _remember(folder: Path, name: str, found: str) -> None:
    with _MEMORY, suppress(OutputError):
        write_text_atomic(_file(folder), json.dumps({**_remembered(folder), name: found}), sync=False)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """What is a number, as Python's own."""
    found = {name: float(v) for name, v in values.items() if isinstance(v, Real) and not isinstance(v, bool)}
    return {name: value for name, value in found.items() if abs(value) < float("inf")}

"""A run's study in the storages that Optuna's tools open: a journal file, or memory that follows the ledger."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend

from evomerge.report.study import study_of
from evomerge.run.folder import RunFolder

optuna.logging.set_verbosity(optuna.logging.ERROR)
_LOG = logging.getLogger(__name__)
_LOOK = 3.0  # seconds between two looks at the ledger
_SHARE = 20  # reading takes at most this part of the time


class _Lines(BaseJournalBackend):
    """A journal in memory. Optuna's own writes each trial to the disk before the next."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return iter(self.logs[log_number_from:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += logs


def journal_of(run: Path | str | RunFolder) -> str:
    """The study of a run as the text of a file for Optuna's `JournalFileBackend`; ``optuna-dashboard FILE`` opens it.

    Raises:
        LedgerError: the folder is not a run's.
    """
    backend = _Lines()
    study_of(run, storage=JournalStorage(backend))
    return "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in backend.logs)


class FollowingStorage(InMemoryStorage):
    """The study of a run in memory, made anew whenever the ledger has grown; what is changed in it touches no file.

    Args:
        run: the run folder.

    Raises:
        LedgerError: the folder is not a run's.
    """

    def __init__(self, run: Path | str) -> None:
        super().__init__()
        self._run = RunFolder.open(run)
        self._seen = -1
        self._over = threading.Event()
        self.look()

    def look(self) -> bool:
        """Read the ledger if it has grown; says whether it has."""
        size = self._run.ledger.stat().st_size
        if size == self._seen:
            return False
        fresh = InMemoryStorage()
        study_of(self._run, storage=fresh)
        with self._lock:
            for name in vars(fresh).keys() - {"_lock"}:
                setattr(self, name, getattr(fresh, name))
        self._seen = size
        return True

    def follow(self) -> None:
        """Look every few seconds, in a thread of its own that ends with the process, or with `close`."""
        threading.Thread(target=self._follow, name="evomerge-ledger", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()

    def _follow(self) -> None:
        pause = _LOOK
        while not self._over.wait(pause):
            before = time.monotonic()
            try:
                self.look()
            except Exception:
                _LOG.exception("%s could not be read again", self._run.ledger)
            pause = max(_LOOK, _SHARE * (time.monotonic() - before))

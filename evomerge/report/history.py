"""All that a ledger says of a search, in one pass, also where the run was killed or its ledger is damaged."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

from evomerge.report.progress import RunProgress
from evomerge.report.trial import Trial
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger
from evomerge.run.ledger_file import Event, LedgerError, TornLine


class History(RunProgress):
    """A run's progress, and every candidate.

    Attributes:
        folder: the run folder.
        trials: told candidates, in the order told; baselines are not among them.
        improved: the events of improvements, each with the `clock` and the number of trials told `at` that time.
        damage: what is wrong with the ledger from some line on, or ``None``.
        torn: whether the last line was incomplete.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder
        self.trials: list[Trial] = []
        self.improved: list[Event] = []
        self.damage: str | None = None
        self.torn = False

    @property
    def genes(self) -> list[list[str]]:
        """Names of every phase's genes; none where they are raw weights."""
        return [[str(n) for n in p["genes"]] if isinstance(p.get("genes"), list) else [] for p in self.phases]

    def of_phase(self, number: int) -> History:
        """A history with the told candidates of one phase only."""
        own = copy.copy(self)
        own.trials, own.in_flight = [trial for trial in self.trials if trial.phase == number], {}
        return own

    def _trial(self, event: Event) -> Trial:
        return Trial.asked(event, self._phase)

    def _kept(self, known: Any, event: Event) -> None:
        if known is not None:
            self.trials.append(known.told(event, self._now()))

    def _warm(self, event: Event) -> None:
        trial = Trial.asked(event, self._phase).told(event, self._now())
        trial.source = str(event.get("source", ""))
        self.trials.append(trial)

    def _improved(self, event: Event) -> None:
        if type(event.get("candidate")) is int:
            self.improved.append({**event, "clock": self._now(), "at": len(self.trials)})

    def _now(self) -> float:
        try:
            return self.seconds
        except LedgerError:  # a time that is none
            return math.nan


def read_history(run: Path | str | RunFolder) -> History:
    """Read a run's ledger as far as it can be read.

    Raises:
        LedgerError: the folder is not a run's. A damaged line is no error: what comes before it counts, and
            `History.damage` says what is wrong.
    """
    folder = RunFolder.open(run.path if isinstance(run, RunFolder) else run)
    history = History(folder)

    def torn(line: TornLine) -> None:
        history.torn = True

    try:
        for event in read_ledger(folder, torn):
            history.update(event)
    except (LedgerError, KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, LedgerError) else f"{type(error).__name__}: {error}"
        history.damage = reason
    return history

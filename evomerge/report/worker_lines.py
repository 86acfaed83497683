"""What the workers of a running search do, in words."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence

from evomerge.protocols import Work
from evomerge.report.formatting import duration
from evomerge.run.folder import RunFolder
from evomerge.run.ledger_file import LedgerError
from evomerge.utils.files import read_bounded

_SHOWN_WORKERS = 4


def noting(workers: Sequence[Work]) -> str:
    """That workers look at the sources once for all candidates, and how far the first of them is; empty where not."""
    found = next((work for work in workers if work.stage == "noting"), None)
    return "" if found is None else f"noting statistics of the sources, {found.done} of {found.slices} slices"


def _stage(work: Work) -> str:
    """What a worker is at, where that is known."""
    slices = f" {work.done} of {work.slices} slices" if work.stage in ("noting", "merging") else ""
    return f", {work.stage}{slices}," if work.stage else ""


def worker_lines(workers: Sequence[Work], now: float) -> list[str]:
    """How many workers are busy, what those do that have been at it longest by the time `now`, what others wait for."""
    busy = sorted((work for work in workers if work.candidate is not None), key=lambda work: work.since)
    shown = [
        f"{work.worker}: candidate {work.candidate}{' (held-out items)' if work.split == 'held_out' else ''}"
        f"{_stage(work)} for {duration(max(0.0, now - work.since))}"
        for work in busy[:_SHOWN_WORKERS]
    ]
    more = [f"{len(busy) - _SHOWN_WORKERS} more"] if len(busy) > _SHOWN_WORKERS else []
    idle = Counter(work.stage for work in workers if work.candidate is None and work.stage)
    others = [f"{number} {stage}" for stage, number in idle.items()]
    return [f"{len(busy)} of {len(workers)} busy", *shown, *more, *others]


def not_begun(folder: RunFolder, *, running: bool) -> LedgerError:
    """The error for a run whose ledger has not begun; of one that is running with what its workers are at."""
    lines = worker_lines(read_workers(folder), time.time())[1:] if running else []
    if lines:
        return LedgerError(f"the search of {folder.path} has not begun; its workers: {', '.join(lines)}", "", "wait")
    return LedgerError(f"{folder.ledger} has no started event", "the ledger of a run", "wait, or start the run again")


def read_workers(folder: RunFolder) -> tuple[Work, ...]:
    """What the workers of a running search do, as it last wrote; nothing where it did not."""
    try:
        return tuple(Work(**entry) for entry in json.loads(read_bounded(folder.workers, 2**24, follow=False)))
    except (OSError, ValueError, TypeError):
        return ()

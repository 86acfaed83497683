"""What the sections of a report read: a run as far as it can be read, each part with the reason where it cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Evaluation, Split
from evomerge.errors import EvomergeError
from evomerge.objectives import Objective
from evomerge.recipes.path import LayerPath, path_of
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import load_recipe
from evomerge.report.formatting import clean
from evomerge.report.history import History, read_history
from evomerge.report.outcome import BEST, NoBaselinesError, RunRecord, outcome_of
from evomerge.report.summary import Summary, summarize_record
from evomerge.report.trial import Trial
from evomerge.run.folder import RunFolder
from evomerge.run.items import read_items
from evomerge.run.ledger_file import LedgerError, lock_holder
from evomerge.run.remains import require_ledger
from evomerge.utils.files import read_bounded
from evomerge.utils.safe_yaml import parse

State = Literal["running", "ended", "interrupted", "dead", "unknown"]
LARGEST_FILE = 16 * 2**20
"""Bytes of a configuration or recipe that a report reads."""
LARGEST_ITEMS = 256 * 2**20
"""Bytes of one evaluation's per-item scores that a report reads."""


@dataclass
class RunView:
    """A run as a report sees it. Reading a part that cannot be read gives ``None`` and adds a line to `problems`.

    Attributes:
        folder: the run folder.
        history: of the search.
        state: whether it goes on, see `report.status`.
        problems: what could not be read, and why.
    """

    folder: RunFolder
    history: History
    state: State
    problems: list[str]

    @classmethod
    def of(cls, run: Path | str) -> RunView:
        """Read a run.

        Raises:
            LedgerError: the folder is not a run's, or its ledger has not begun.
        """
        folder = RunFolder.open(run)
        holder = lock_holder(folder.lock)  # asked before the ledger is read: a run may end meanwhile
        history = read_history(folder)
        if not history.started:
            if history.damage:
                raise LedgerError(history.damage)
            require_ledger(folder, int(history.last is not None))
            raise LedgerError(
                f"{folder.ledger} has no started event",
                "the ledger of a run",
                "wait, or start the run again",
            )
        state: State = "running" if holder else "dead"
        if history.stopped is not None:
            state = "ended"
        elif holder == "":
            state = "unknown"
        elif holder is None and history.interrupted is not None:
            state = "interrupted"
        view = cls(folder, history, state, [])
        if history.damage:
            view.problems.append(f"The ledger is damaged, and what follows the damage is not shown. {history.damage}")
        return view

    @property
    def name(self) -> str:
        """Of the run folder."""
        return clean(self.folder.path.resolve().name, 120)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The configuration as plain values; empty where it cannot be read."""
        text = self.text(self.folder.config)
        try:
            found = parse(text) if text else {}
        except EvomergeError as error:
            self.problems.append(f"config.yaml cannot be read: {error}")
            found = {}
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def pool(self) -> PoolInfo | None:
        """The source models; ``None`` where the run has none, as where genomes are the models."""
        if not self.folder.pool.exists():
            return None
        try:
            return self.folder.read_pool()
        except EvomergeError as error:
            self.problems.append(str(error))
            return None

    @cached_property
    def recipe(self) -> Recipe | None:
        """The best recipe so far."""
        text = self.text(self.folder.best_recipe)
        if not text:
            return None
        try:
            return load_recipe(text, "best/recipe.yaml")
        except EvomergeError as error:
            self.problems.append(str(error))
            return None

    @cached_property
    def path(self) -> LayerPath | None:
        """The best recipe's path, of data flow."""
        return path_of(self.recipe) if self.recipe is not None else None

    @property
    def objective(self) -> Objective:
        """The one that decides."""
        return self.history.objectives[0] if self.history.objectives else Objective("score")

    @cached_property
    def winner(self) -> Trial | None:
        """The best candidate: where finalists were scored on all items, the best of those."""
        wanted = self.history.winner
        if wanted in self.history.validated:
            return self.history.validated[wanted]
        return next((t for t in reversed(self.history.trials) if t.candidate == wanted and t.status == "ok"), None)

    @cached_property
    def record(self) -> RunRecord | None:
        """The outcome; ``None`` without a pool or a scored baseline."""
        pool = self.pool
        if pool is None:
            return None
        best = self.history.held_out.get(BEST) or self.winner
        try:
            return outcome_of(self.history, self.folder, lambda: pool, best, self.evaluation)
        except NoBaselinesError:
            return None

    @cached_property
    def summary(self) -> Summary | None:
        """Scores and tests; ``None`` where there is nothing to compare."""
        if self.record is None:
            return None
        try:
            return summarize_record(self.record)
        except (EvomergeError, ValueError, TypeError, KeyError, IndexError) as error:
            self.problems.append(f"The scores cannot be compared: {error}")
            return None

    def evaluation(self, trial: Trial, split: Split) -> Evaluation:
        """A trial's outcome with its per-item scores, or without where they cannot be read."""
        return trial.evaluation(split, self.items(trial, split))

    def items(self, trial: Trial, split: Split) -> dict[str, NDArray[np.float64]]:
        """A trial's per-item scores; none where they cannot be read."""
        if trial.digest is None:
            return {}
        with contextlib.suppress(OSError):
            if self.folder.items_file(trial.candidate, split).stat().st_size > LARGEST_ITEMS:
                self.problems.append(f"Per-item scores of candidate {trial.candidate} are too large to be read")
                return {}
        try:
            return read_items(self.folder, trial.candidate, split, digest=trial.digest)
        except EvomergeError as error:
            if not any(problem.startswith("Per-item scores") for problem in self.problems):
                self.problems.append(f"Per-item scores are missing: {error}")
            return {}

    def text(self, path: Path) -> str:
        """A file of the run folder; empty where it is missing, too large or no text."""
        with contextlib.suppress(OSError):
            if path.stat().st_size > LARGEST_FILE:
                self.problems.append(f"{path.name} is larger than {LARGEST_FILE // 2**20} MB and is left out")
                return ""
            return read_bounded(path, LARGEST_FILE).decode(errors="replace")
        return ""

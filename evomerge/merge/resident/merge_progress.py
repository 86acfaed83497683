"""How far a resident model is on its way to a plan: for those who watch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from evomerge.merge.execution.notes import Notes

Doing = Literal["", "noting", "merging"]


@dataclass
class MergeProgress:
    """Slices of a plan that are done; another thread may read it at any time.

    Attributes:
        notes: of the pool; what they take is the stage that is called noting.
        slices: that the model is to change.
        done: of these.
    """

    notes: Notes
    slices: int = 0
    done: int = 0
    _began: float | None = None
    _noted: float = 0.0

    def begin(self, slices: int) -> None:
        """A plan is to be carried out."""
        self.slices, self.done, self._noted = slices, 0, self.notes.seconds
        self._began = time.perf_counter()

    def step(self) -> None:
        """A slice is done."""
        self.done += 1

    def end(self) -> None:
        """The model is the plan's, or merging failed."""
        self._began = None

    @property
    def noted(self) -> float:
        """Seconds of noting since `begin`."""
        return self.notes.seconds - self._noted

    @property
    def doing(self) -> Doing:
        """What most of the time goes into; empty while nothing is merged."""
        began = self._began
        if began is None:
            return ""
        mostly = self.noted > (time.perf_counter() - began) / 2
        return "noting" if mostly or self.notes.busy else "merging"

"""When every candidate fails in the same way, something is broken that is no candidate's fault."""

from __future__ import annotations

import re

from evomerge.candidate import Evaluation
from evomerge.search.hooks import GaveUpError

_VARIES = re.compile(r"\b\w*\d\w*\b")  # sizes, addresses, names of files and of layers


class Streak:
    """Counts failures in a row that have the same reason, numbers in it aside.

    A candidate that the search space has no model for says nothing; one that could be scored ends the streak.

    Args:
        limit: how many are too many; ``None`` for no limit.

    Attributes:
        length: of the present streak.
        reason: of its last failure.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.length = 0
        self.reason = ""
        self._alike = ""

    @property
    def hopeless(self) -> bool:
        """Whether there are too many."""
        return self._limit is not None and self.length >= self._limit

    def require_hope(self) -> None:
        """`GaveUpError` where there are too many."""
        if self.hopeless:
            raise GaveUpError(
                f"{self.length} candidates in a row failed the same way: {self.reason}",
                "a fitness, a pool and workers that work",
                "mend what is broken and go on with `evomerge resume RUN`, or set search.give_up=null",
            )

    def see(self, evaluation: Evaluation) -> None:
        """Count one more evaluation."""
        if evaluation.status == "infeasible":
            return
        alike = _VARIES.sub("#", evaluation.error)
        if evaluation.status != "failed":
            self.length = 0
        elif self.length and alike == self._alike:
            self.length += 1
        else:
            self.length = 1
        self.reason, self._alike = evaluation.error, alike

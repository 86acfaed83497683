"""What evaluators that stand before another one have in common."""

from __future__ import annotations

from collections.abc import Callable

from evomerge.candidate import Split
from evomerge.protocols import Evaluator


class WrappedEvaluator:
    """Passes on to another evaluator all but candidates and evaluations.

    Args:
        evaluator: the other one.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    @property
    def slots(self) -> int:
        """Those of the other evaluator."""
        return self._evaluator.slots

    @property
    def together(self) -> int:
        """How many candidates each worker of the other evaluator takes at once."""
        return int(getattr(self._evaluator, "together", 1))

    def withdraw(self) -> list[int]:
        """Those that the other evaluator has not begun with, by id; they will not come back."""
        withdraw: Callable[[], list[int]] = getattr(self._evaluator, "withdraw", list)
        return withdraw()

    def fingerprint(self, split: Split) -> str:
        """That of the other evaluator."""
        return self._evaluator.fingerprint(split)

    def close(self) -> None:
        """Close the other evaluator."""
        self._evaluator.close()

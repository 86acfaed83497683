"""Candidates in flight: asked, and not told yet."""

from __future__ import annotations

from collections.abc import Callable

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.protocols import Evaluator

MOST_IN_FLIGHT = 10**6
"""Candidates that may be asked and not told at the same time."""


def in_flight_limit(in_flight: int | None, ordered: bool, slots: int) -> int | None:
    """How many candidates are in flight at once; ``None`` for a generation at a time.

    Not ordered and not given: as many as there are workers, and an eighth more that wait for one, so that no worker
    waits for the strategy. One worker gets one: what is asked later knows more.
    """
    if in_flight is not None or ordered:
        return in_flight
    return slots if slots == 1 else slots + -(-slots // 8)


class PendingEvaluations:
    """Sends candidates to the evaluator and says whose turn it is to be told.

    In order: the oldest, however long it takes, whichever others have arrived. Otherwise: whichever arrives first.

    Args:
        evaluator: where candidates are evaluated.
        split: on which items.
        ordered: whether candidates are told in the order in which they were submitted.
    """

    def __init__(self, evaluator: Evaluator, split: Split, *, ordered: bool) -> None:
        self._evaluator, self._split, self._ordered = evaluator, split, ordered
        self._waiting: dict[int, Candidate] = {}  # in the order asked
        self._arrived: dict[int, Evaluation] = {}
        self._sent: set[int] = set()  # with the evaluator
        self._stopped = False
        self.against: dict[int, int] = {}
        """In a race, whom each candidate in flight must beat, or how many trials a pruner compares it with."""

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, candidate: Candidate, refused: str | None = None, against: int | None = None) -> None:
        """Send a candidate to be evaluated.

        Args:
            candidate: it.
            refused: why the search space has no model for it: it comes back at once, as infeasible.
            against: in a race, what `against` had of it, of a search that is gone on with.
        """
        self._waiting[candidate.id] = candidate
        if refused is not None:
            self._arrived[candidate.id] = Evaluation(candidate.id, "infeasible", self._split, error=refused)
        elif not self._stopped:
            self._sent.add(candidate.id)
            self._evaluator.submit(candidate, self._split)

    def stop(self) -> None:
        """Send nothing more, and take back what no worker has begun with."""
        self._stopped = True
        withdraw: Callable[[], list[int]] = getattr(self._evaluator, "withdraw", list)
        self._sent.difference_update(withdraw())

    @property
    def expects_result(self) -> bool:
        """Whether `next_result` has something to return, or to wait for: once stopped, what is not sent never comes."""
        if not self._waiting:
            return False
        if not self._stopped:
            return True
        if self._ordered:
            first = next(iter(self._waiting))
            return first in self._sent or first in self._arrived
        return bool(self._sent)

    @property
    def candidates(self) -> list[Candidate]:
        """Those in flight, in the order asked."""
        return list(self._waiting.values())

    @property
    def learnt(self) -> int | None:
        """In a race, how many models its estimator knows."""
        return None

    @property
    def settled(self) -> bool:
        """Whether a search can be gone on with from here, the candidates in flight evaluated anew."""
        return True

    @property
    def _ready(self) -> bool:
        return (next(iter(self._waiting), None) in self._arrived) if self._ordered else bool(self._arrived)

    def step(self) -> bool:
        """Wait for one evaluation, unless `next_result` has something to return; whether it has.

        There must be a candidate in flight.
        """
        if not self._ready:
            evaluation = self._evaluator.collect()
            self._arrived[evaluation.candidate] = evaluation
            self._sent.discard(evaluation.candidate)
        return self._ready

    def shown(self, evaluation: Evaluation) -> Evaluation:
        """What a strategy is told of an evaluation."""
        return evaluation

    def next_result(self) -> tuple[Candidate, Evaluation]:
        """The next candidate to tell, and its evaluation, waited for."""
        while not self.step():
            pass
        number = next(iter(self._waiting if self._ordered else self._arrived))
        return self._waiting.pop(number), self._arrived.pop(number)

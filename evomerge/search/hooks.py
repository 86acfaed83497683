"""What a search is given besides its parts: who writes things down, when it ends, and how it says so."""

from __future__ import annotations

from typing import Protocol

from evomerge.candidate import Evaluation
from evomerge.errors import EvomergeError
from evomerge.search.incumbent import Incumbent
from evomerge.search.state import SearchState


class BestWriter(Protocol):
    """Writes down what is best so far."""

    def __call__(self, incumbent: Incumbent, /) -> None:
        """Called whenever the winner or the front has changed."""


class CheckpointHook(Protocol):
    """Saves the state of a search, now and then."""

    def __call__(self, state: SearchState, /, *, now: bool) -> None:
        """Called whenever nothing is half done, so that it may; `now` when it is the last time."""


class ResponseKeeper(Protocol):
    """Keeps what models answered, where people will want to see it."""

    def __call__(self, evaluation: Evaluation, name: str | None, /, *, compared: bool) -> None:
        """Called with every evaluation that is told.

        Args:
            evaluation: with its responses.
            name: of a model of the pool; ``None`` for candidates.
            compared: whether it is one that others are compared with: a model of the pool, or the best so far.
        """


def no_responses(evaluation: Evaluation, name: str | None, /, *, compared: bool) -> None:
    """Keeps nothing."""


def no_checkpoint(state: SearchState, /, *, now: bool) -> None:
    """Saves nothing."""


class GaveUpError(EvomergeError):
    """Candidates failed one after the other, all in the same way."""

    exit_status = 1


class Interrupted(KeyboardInterrupt):
    """The search was asked to stop, and has: its ledger is as if it had been killed between two events."""


def never_stop() -> bool:
    """A search that runs to its end."""
    return False

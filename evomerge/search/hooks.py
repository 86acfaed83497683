"""What a search is given besides its parts: who writes things down, when it ends, and how it says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from evomerge.errors import EvomergeError
from evomerge.search.incumbent import Incumbent

if TYPE_CHECKING:
    from evomerge.search.loop import Search


class Keeper(Protocol):
    """Writes down what is best so far."""

    def __call__(self, incumbent: Incumbent, /) -> None:
        """Called whenever the winner or the front has changed."""


class Saver(Protocol):
    """Takes the state of a search down, now and then."""

    def __call__(self, search: Search, /, *, now: bool) -> None:
        """Called whenever nothing is half done, so that it may; `now` when it is the last time."""


def forgetful(search: Search, /, *, now: bool) -> None:
    """Takes nothing down."""


class GaveUpError(EvomergeError):
    """Candidates failed one after the other, all in the same way."""

    exit_status = 1


class Interrupted(KeyboardInterrupt):
    """The search was asked to stop, and has: its ledger is as if it had been killed between two events."""


def never() -> bool:
    """A search that runs to its end."""
    return False

"""Who is told of everything that enters a ledger: displays and trackers. None of them can hurt a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from evomerge.run.ledger_file import Event

_LOG = logging.getLogger(__name__)


class Observer(Protocol):
    """Told of every event as soon as it is in the ledger, by the thread that searches: it should return at once.

    What is told is what the ledger holds, with numpy values and tuples as they were before they became JSON. Events
    that a resumed run finds in its ledger are not told again.
    """

    def __call__(self, event: Event, /) -> None:
        """Take it in; the event must stay as it is."""


class Observers:
    """Tells each observer; one that raises is told no more, and the log says why.

    Args:
        observers: whom to tell, in this order.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def __call__(self, event: Event) -> None:
        """Tell everybody."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                self._observers = tuple(other for other in self._observers if other is not observer)
                name = getattr(observer, "__qualname__", type(observer).__name__)
                _LOG.exception("%s failed at event %s and is told no more", name, event.get("seq"))

"""How long a search has searched, over all its sessions: from the times in its ledger alone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

_LONGEST = 366 * 86400.0  # seconds between two events: more is a clock that was set


class SearchClock:
    """Adds up the time between the events of a ledger, in seconds.

    What lies between two sessions does not count, nor does held-out scoring. A session that goes on counts from the
    time `since` of its ``resumed`` event, which is written only with the first new one. A clock that was set back
    counts nothing meanwhile; times that cannot be read are passed over.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last: datetime | None = None
        self._judging = False

    def see(self, event: Mapping[str, Any]) -> None:
        """Take in the next event."""
        kind = event.get("event")
        now = _time(event.get("time"))
        if now is None:
            return
        if kind == "resumed":
            since = _time(event.get("since")) or now
            self._last, self._judging = min(since, now), False
        judging = event.get("split") == "held_out" or kind == "stopped"
        if self._last is not None and not (judging or self._judging):
            self.seconds += min(max(0.0, (now - self._last).total_seconds()), _LONGEST)
        self._last, self._judging = now, judging


def _time(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo is not None else None

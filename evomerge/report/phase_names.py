"""What the phases of a run are called, of which one may be searched for several preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.preferences import written
from evomerge.run.ledger_file import Event


def phase_name(event: Event) -> str:
    """The name of a phase, and the preference that it is searched for: ``path for maths=0.75,chat=0.25``."""
    name, wanted = str(event.get("phase")), event.get("preference")
    if not isinstance(wanted, Mapping):
        return name
    weights = [float(w) if isinstance(w, int | float) else 0.0 for w in wanted.values()]
    return f"{name} for {written(weights, [str(objective) for objective in wanted])}"


def running_phase(events: Sequence[Event]) -> str | None:
    """The last of several phases, as ``path (2 of 2)``; ``None`` where there is one."""
    event: Event = events[-1] if events else {}
    number, several = event.get("number"), event.get("phases", 1)
    return None if several in (0, 1) else f"{phase_name(event)} ({number} of {several})"


def together(events: Sequence[Event]) -> list[list[Event]]:
    """The phases in order, those of one name for several preferences together."""
    found: list[list[Event]] = []
    for event in events:
        before: Event = found[-1][0] if found else {}
        if "preference" in event and "preference" in before and event.get("phase") == before.get("phase"):
            found[-1].append(event)
        else:
            found.append([event])
    return found


def joint_name(group: Sequence[Event]) -> str:
    """The name of such phases: ``path for 5 preferences``."""
    return phase_name(group[0]) if len(group) == 1 else f"{group[0].get('phase')} for {len(group)} preferences"

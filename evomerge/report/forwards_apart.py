"""What a search scored with, and how far that is from the stock tool's numbers on its winner."""

from __future__ import annotations

import math
from collections.abc import Mapping

from evomerge.report.formatting import clean, count


def apart_text(apart: Mapping[str, float]) -> str:
    """In words, from what the ledger keeps of a winner; empty where nothing was compared."""
    nats = apart.get("nats", math.nan)
    if not nats >= 0:
        return ""
    found = [f"log-likelihoods differ by {nats:.2g} nats at most"] if nats else ["log-likelihoods are equal"]
    items, generated = (_whole(apart.get(name)) for name in ("items", "generated"))
    if items:
        found.append(f"{_whole(apart.get('turned')):,} of {count(items, 'right or wrong answer')} turned")
    if generated:
        found.append(f"{_whole(apart.get('texts')):,} of {count(generated, 'text')} differ")
    for name, value in apart.items():
        kind, _, objective = name.partition("/")
        if kind == "objective" and math.isfinite(value):
            found.append(f"{clean(objective, 40)} by {value:+.2g}" if value else f"{clean(objective, 40)} not at all")
    return (
        "The search scored with shared forwards; held-out scores are lm-eval's own to the last digit. "
        f"On the winner and the items of the search, the two compared: {', '.join(found)}."
    )


def _whole(value: float | None) -> int:
    return int(value) if value is not None and 0 <= value < math.inf else 0

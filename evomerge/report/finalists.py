"""What racing saved, and how much better the finalists looked in the search than on all items."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.report.formatting import clean, count, number, signed
from evomerge.report.trial import numbers

if TYPE_CHECKING:
    from evomerge.report.progress import RunProgress


@dataclass(frozen=True)
class Finalist:
    """A candidate that was scored on all items in the end.

    Attributes:
        candidate: its id.
        search: the first objective as the search told it; NaN of one that the search did not evaluate.
        error: its standard error there; NaN where it is not known, 0 where that was all items.
        validation: the first objective on all items; NaN where it could not be scored.
        winner: whether it won.
    """

    candidate: int
    search: float
    error: float
    validation: float
    winner: bool

    @property
    def shrinkage(self) -> float:
        """How much less it has on all items than in the search."""
        return self.search - self.validation


def finalists(event: Mapping[str, Any], races: Mapping[int, Mapping[str, float]], objective: str) -> list[Finalist]:
    """The finalists of a ``finalists`` event, in its order.

    Args:
        event: empty where there were none.
        races: `Evaluation.race` by candidate, where it is known.
        objective: the first.
    """
    candidates = event.get("candidates")
    if not isinstance(candidates, list):
        return []

    def column(name: str) -> dict[str, float]:
        values = event.get(name)
        return numbers(dict(enumerate(values))) if isinstance(values, list) else {}

    search, validation = column("search"), column("validation")
    found = []
    for place, candidate in enumerate(candidates):
        if type(candidate) is int:
            race = races.get(candidate)
            error = math.nan if race is None else race.get(f"error/{objective}", 0.0)
            scores = (values.get(str(place), math.nan) for values in (search, validation))
            score, validated = scores
            found.append(Finalist(candidate, score, error, validated, candidate == event.get("winner")))
    return found


_ENGINES = {"vllm": "vLLM", "server": "a server that loads candidates as adapters"}


def engine_text(started: Mapping[str, Any]) -> str:
    """With what a run scored, from its ``started`` event; empty for transformers."""
    name = _ENGINES.get(str(started.get("engine")))
    return f"Scored with {name}." if name else ""


def quantised_text(started: Mapping[str, Any]) -> str:
    """With which weights a run scored what, from its ``started`` event; empty where all were in full precision."""
    name = started.get("quantise")
    if not isinstance(name, str):
        return ""
    weights = f"with weights quantised to {clean(name, 20)}"
    if started.get("quantise_held_out") is True:
        return f"All scores are {weights}."
    return f"The search scored {weights}; finalists and held-out items are scored in full precision."


def compared_score(seen: RunProgress) -> float | None:
    """The winner's first objective, scored as baselines are; ``None`` where there is none.

    Finalists may be scored in another precision than the search, or on items of their own: baselines are not, so that
    only what the search itself told of the winner compares with theirs.
    """
    quantised = isinstance(seen.started.get("quantise"), str) and seen.started.get("quantise_held_out") is not True
    found = finalists(seen.finalists, {}, "") if quantised or seen.finalists.get("on") == "validation" else []
    winner = next((finalist for finalist in found if finalist.winner), None)
    if winner is None:
        return numbers(seen.last_improved or {}).get("objective")
    return winner.search if math.isfinite(winner.search) else None


def race_lines(seen: RunProgress) -> tuple[str, ...]:
    """What a run says of its engine, its quantised weights and its race, a sentence each."""
    lines = [text for text in (engine_text(seen.started), quantised_text(seen.started)) if text]
    lines += seen.race.lines(_whole(seen.started))
    found = finalists(seen.finalists, {}, "")
    winner = next((finalist for finalist in found if finalist.winner), None)
    if winner is not None:
        where = "validation items" if seen.finalists.get("on") == "validation" else "all items"
        line = f"{count(len(found), 'finalist')} scored on {where}: candidate {winner.candidate} won with "
        line += number(winner.validation)
        if math.isfinite(winner.search):
            line += f", {number(winner.search)} in the search"
        known = [f.shrinkage for f in found if math.isfinite(f.shrinkage)]
        line += f"; on average they changed by {signed(-sum(known) / len(known))}." if known else "."
        lines.append(line)
    return tuple(lines)


def _whole(started: Mapping[str, Any]) -> str:
    """Why nobody was scored on some items only, where that was left to what is searched; else empty."""
    event = started.get("race")
    if not isinstance(event, Mapping) or not isinstance(event.get("reason"), str):
        return ""
    who = "Every candidate" if "cheap" not in started else "Those that went on were scored"
    return f"{who} on all items, no race: {clean(event['reason'], 200)}."

"""Whom candidates are compared with in pairs, item by item; and which of the two a rater sees first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evomerge.run.ratings.bradley_terry import strength
from evomerge.run.ratings.rules import Text
from evomerge.run.ratings.sheets import MOST_BYTES
from evomerge.utils.files import read_bounded, write_text_atomic


@dataclass(frozen=True)
class Pairs:
    """The opponents of a candidate, as they were when its texts were laid out.

    Attributes:
        against: by item the opponent's blind name; empty for the first candidate, whose strength is 0.
        strengths: by item the opponent's.
    """

    against: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()

    def write(self, path: Path) -> None:
        """Write them down; the folder must be there."""
        write_text_atomic(path, json.dumps({"evomerge_pairs": 1, **asdict(self)}) + "\n")

    def strength(self, scores: Mapping[str, Sequence[float]]) -> float:
        """The candidate's, from what raters gave: by rater, by item how far they prefer it, from 0 to 1."""
        if not self.against:
            return 0.0
        return strength(shares_of(scores), self.strengths, len(scores))


def read_pairs(path: Path) -> Pairs | None:
    """What `Pairs.write` wrote; ``None`` where it is not there, or is something else."""
    try:
        content = json.loads(read_bounded(path, MOST_BYTES, follow=False))
        found = Pairs(tuple(map(str, content["against"])), tuple(map(float, content["strengths"])))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if len(found.against) == len(found.strengths) else None


def shares_of(scores: Mapping[str, Sequence[float]]) -> list[float]:
    """By item the mean of what raters gave."""
    return [sum(own) / len(own) for own in zip(*scores.values(), strict=True)]


def choose(known: Mapping[str, float], items: int) -> Pairs:
    """Opponents among candidates whose strength is known: the two strongest and the middle one, dealt to items in turn.

    Comparisons tell most between candidates of like strength, and a search needs to know which of the best is better;
    the middle one tells weak candidates apart.

    Args:
        known: by blind name the strength; empty before the first was rated.
        items: how many comparisons.
    """
    ranked = sorted(known, key=lambda name: (-known[name], name))
    if not ranked:
        return Pairs()
    chosen = list(dict.fromkeys([*ranked[:2], ranked[len(ranked) // 2]]))
    against = tuple(chosen[item % len(chosen)] for item in range(items))
    return Pairs(against, tuple(known[name] for name in against))


def paired(texts: Sequence[Text], others: Sequence[str], name: str) -> list[Text]:
    """Texts with their opponents', in an order that tells nothing.

    Args:
        texts: of the candidate, by item.
        others: by item the opponent's text.
        name: the candidate's blind name.
    """
    found = []
    for text, other in zip(texts, others, strict=True):
        first, second = (other, text.text) if swapped(name, text.item) else (text.text, other)
        found.append(text._replace(text=first, other=second))
    return found


def preferred(scores: Sequence[float], name: str) -> list[float]:
    """By item how far the candidate was preferred, from scores of what was shown first."""
    return [1.0 - score if swapped(name, item) else score for item, score in enumerate(scores)]


def swapped(name: str, item: int) -> bool:
    """Whether the opponent's text is shown first."""
    return bool(hashlib.sha256(f"pair {name} {item}".encode()).digest()[0] & 1)

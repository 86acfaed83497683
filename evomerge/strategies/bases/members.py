"""A population of scored points, in the order in which its members came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.strategies.bases.saving import stacked, unstacked
from evomerge.strategies.variation.coordinates import Coordinates

Array = NDArray[np.float64]
Choices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Member:
    """One scored candidate.

    Attributes:
        point: coordinates within the unit cube; never changed.
        choices: numbers of choices; never changed.
        gain: its score, larger is better.
        id: of the candidate.
    """

    point: Array
    choices: Choices
    gain: float
    id: int

    def same_genes(self, point: Array, choices: Choices) -> bool:
        """Whether these are its coordinates and choices."""
        return np.array_equal(self.point, point) and np.array_equal(self.choices, choices)


def members_state(members: list[Member], coordinates: Coordinates) -> dict[str, Any]:
    """Members as arrays."""
    return {
        **stacked([(m.point, m.choices, m.id) for m in members], coordinates),
        "gains": np.array([m.gain for m in members], dtype=np.float64),
        "ids": np.array([m.id for m in members], dtype=np.int64),
    }


def members_of(state: Mapping[str, Any]) -> list[Member]:
    """The members that `members_state` made arrays of."""
    points, choices = unstacked(state)
    gains, ids = np.asarray(state["gains"]).tolist(), np.asarray(state["ids"]).tolist()
    return [Member(*fields) for fields in zip(points, choices, gains, ids, strict=True)]

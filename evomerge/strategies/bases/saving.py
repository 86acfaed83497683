"""What the states of strategies have in common: generators, settings, proposals in flight."""

from __future__ import annotations

import copy
import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.variation.coordinates import Coordinates

Array = NDArray[np.float64]
Choices = NDArray[np.int64]


def settings_of(spec: GenomeSpec, objectives: Sequence[Objective], **settings: Any) -> dict[str, Any]:
    """What a saved state must agree on, as JSON values: a hash of the genes, the objectives, and `settings`."""
    genes = [[g.name, g.kind, float(g.low), float(g.high), g.start, g.resolution, g.choices] for g in spec]
    return {
        **settings,
        "genes": hashlib.sha256(repr(genes).encode()).hexdigest(),
        "objectives": [[objective.name, objective.direction] for objective in objectives],
    }


def check_settings(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise `ConfigError` naming the first setting in which a saved state is of another strategy."""
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise ConfigError(
                f"the saved {name} has {key} {theirs.get(key)!r}, this one has {value!r}",
                "a search resumes with the settings that it began with",
            )


def rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """A generator's state as JSON values, apart from the generator."""
    return copy.deepcopy(dict(rng.bit_generator.state))


class InFlight:
    """Proposals handed out and not yet told, each with its coordinates and a number.

    Equal genomes are told apart by the order in which they were proposed: the first told is the first proposed.
    """

    def __init__(self, coordinates: Coordinates) -> None:
        self._coordinates = coordinates
        self._rows: dict[int, tuple[Array, Choices, int]] = {}
        self._waiting: dict[Genome, deque[int]] = {}
        self._next = 0

    def add(self, point: Array, choices: Choices, tag: int) -> Genome:
        """The genome of these coordinates, from now on in flight."""
        genome = self._coordinates.genome(point, choices)
        self._waiting.setdefault(genome, deque()).append(self._next)
        self._rows[self._next] = (point, choices, tag)
        self._next += 1
        return genome

    def first(self, genome: Genome | None) -> tuple[Array, Choices, int] | None:
        """Coordinates, choices and number of the proposal that is told next; ``None`` for what is not in flight."""
        waiting = self._waiting.get(genome) if genome is not None else None
        return self._rows[waiting[0]] if waiting else None

    def take(self, genome: Genome | None) -> None:
        """What `first` gave has been told."""
        assert genome is not None, "it is in flight"
        waiting = self._waiting[genome]
        del self._rows[waiting.popleft()]
        if not waiting:
            del self._waiting[genome]

    def tags(self) -> list[int]:
        """The numbers of all in flight, in the order proposed."""
        return [tag for _, _, tag in self._rows.values()]

    def state(self) -> dict[str, Any]:
        """Everything in flight, as arrays."""
        return {**stacked(list(self._rows.values()), self._coordinates), "tags": np.array(self.tags(), dtype=np.int64)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Only what `state` tells of is in flight."""
        self._rows, self._waiting, self._next = {}, {}, 0
        for point, choices, tag in zip(*unstacked(state), np.asarray(state["tags"]).tolist(), strict=True):
            self.add(point, choices, tag)


def stacked(rows: Sequence[tuple[Array, Choices, Any]], coordinates: Coordinates) -> dict[str, Any]:
    """Coordinates and choices of rows as two arrays with a row each."""
    return {
        "points": np.array([row[0] for row in rows], dtype=np.float64).reshape(len(rows), len(coordinates.start)),
        "choices": np.array([row[1] for row in rows], dtype=np.int64).reshape(len(rows), len(coordinates.counts)),
    }


def unstacked(state: Mapping[str, Any]) -> tuple[list[Array], list[Choices]]:
    """Copies of the rows that `stacked` made arrays of."""
    points = np.array(state["points"], dtype=np.float64)
    return list(points), list(np.array(state["choices"], dtype=np.int64))


def starts_of(spec: GenomeSpec, coordinates: Coordinates) -> list[tuple[Array, Choices]]:
    """Where a population starts: the spec's start, and the seeds of an `ArraySpec`, as coordinates and choices."""
    seeds: tuple[Genome, ...] = getattr(spec, "seeds", ())
    return [coordinates.point(genome) for genome in (spec.initial, *seeds)]

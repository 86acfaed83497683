"""Who leaves an island: kept as candidates are told, chosen when it is time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from evomerge.candidate import Candidate, Evaluation
from evomerge.genomes.arrays import ArrayGenome
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.bases.generations import gain_of

Select = Literal["best", "random", "front"]
Emigrant = tuple[float, Candidate, Evaluation]


class Emigrants:
    """Those of an island's candidates that may travel, of all told to it since the last time.

    Args:
        select: the ``best`` by the first objective; ``random`` ones; or of the ``front`` that no other beats in all
            objectives, random ones where it has more than may travel. (GigaEvo's three selectors.)
        most: how many travel, at most.
        share: of those told, rounded up; ``None`` for as many as `most`.
    """

    def __init__(self, select: Select, most: int, share: float | None) -> None:
        self._select, self._most, self._share = select, most, share
        self.kept: list[Emigrant] = []
        self.told = 0

    def add(self, emigrant: Emigrant, objectives: Sequence[Objective], rng: np.random.Generator) -> None:
        """Consider a candidate with a score."""
        self.told += 1
        if self._most == 0:
            return
        if self._select == "best":
            ordered = sorted([*self.kept, emigrant], key=lambda each: -each[0])
            self.kept = ordered[: self._most]
        elif self._select == "random":
            if len(self.kept) < self._most:
                self.kept.append(emigrant)
            elif (place := int(rng.integers(self.told))) < self._most:  # each of those told is as likely to be kept
                self.kept[place] = emigrant
        elif not any(_dominates(each, emigrant, objectives) for each in self.kept):
            self.kept = [each for each in self.kept if not _dominates(emigrant, each, objectives)] + [emigrant]

    def leave(self, rng: np.random.Generator) -> list[Emigrant]:
        """Those that travel now; from here on others are considered."""
        count = self._most if self._share is None else min(self._most, math.ceil(self._share * self.told - 1e-9))
        leaving, self.kept, self.told = self.kept, [], 0
        if len(leaving) > count and self._select != "best":
            leaving = [leaving[int(place)] for place in sorted(rng.choice(len(leaving), count, replace=False))]
        return leaving[:count]

    def state(self) -> list[dict[str, Any]]:
        """Those kept, as JSON values and arrays."""
        return [_saved(*emigrant) for emigrant in self.kept]

    def load(self, state: Sequence[Mapping[str, Any]], told: int, spec: GenomeSpec) -> None:
        """Keep those of `state`."""
        self.kept, self.told = [_restored(saved, spec) for saved in state], told


def _dominates(one: Emigrant, other: Emigrant, objectives: Sequence[Objective]) -> bool:
    """Whether one is at least as good in all objectives, and no equal."""
    a, b = ([gain_of(told, objective) for objective in objectives] for _, _, told in (one, other))
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


def plain(genome: Genome) -> Any:
    """A genome's values as an array or as JSON values."""
    return np.array(genome.array) if isinstance(genome, ArrayGenome) else list(genome.values)


def _saved(gain: float, candidate: Candidate, evaluation: Evaluation) -> dict[str, Any]:
    told = dataclasses.asdict(evaluation)
    genome = plain(candidate.genome) if candidate.genome is not None else []
    kept = {name: told[name] for name in ("objectives", "metrics", "items")}
    return {"gain": gain, "candidate": candidate.id, "genome": genome, "parents": list(candidate.parents), **kept}


def _restored(saved: Mapping[str, Any], spec: GenomeSpec) -> Emigrant:
    identity = int(saved["candidate"])
    candidate = Candidate(identity, None, spec.genome(saved["genome"]), tuple(saved["parents"]))
    items = {name: np.array(values) for name, values in saved["items"].items()}
    told = Evaluation(identity, "ok", objectives=dict(saved["objectives"]), metrics=dict(saved["metrics"]), items=items)
    return float(saved["gain"]), candidate, told

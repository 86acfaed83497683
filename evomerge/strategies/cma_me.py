"""CMA-ME: evolution strategies that look for what improves an archive."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Candidate, Evaluation
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.archives.descriptors import Descriptors
from evomerge.strategies.archives.grids import Archive, Shape, cells_of, make_archive
from evomerge.strategies.archives.ribs_import import EvolutionStrategyEmitter
from evomerge.strategies.bases.capabilities import KINDS, check_range, objective_named, require
from evomerge.strategies.bases.generations import Generations, gain_of
from evomerge.strategies.map_elites import Elite
from evomerge.strategies.variation.coordinates import Coordinates

Array = NDArray[np.float64]


class CmaMe(Generations):
    """CMA-ME (Fontaine et al. 2020, arXiv 1912.02400) through `ribs`; implements `protocols.Strategy`.

    Every emitter is a CMA-ES whose candidates are ranked by how much they improve the archive: a new cell before a
    better elite, then by how much (improvement ranking). It restarts from an elite drawn at random when a generation
    improves nothing. A generation is that of all emitters together; `ask` returns nothing while one is in flight.

    The emitters work on the unit cube without bounds; points outside are mirrored into it (drawing anew until a point
    is inside, which `ribs` does, takes for ever at the corner of many genes). Whole numbers and grids are rounded,
    booleans are thresholds; categorical genes have no order for a covariance to follow and are refused.

    Failures, and scores or descriptors that are not numbers, are not told to the archive and rank last; a generation
    of nothing else is drawn anew. The state is that of `Generations`, with the descriptors of all candidates.

    Args:
        spec: the genes, none categorical.
        objectives: one or several; `objective` is the quality, the others may be descriptors.
        seed: of all that is random here.
        objective: name of the quality; the first for ``None``.
        descriptors, ranges: see `Descriptors`.
        archive, cells: see `MapElites`.
        emitters: how many; the paper has 15 for a million evaluations.
        popsize: candidates per generation of each; 4 + 3 ln(free genes), rounded down, for ``None``.
        sigma0: initial standard deviation, in units of a gene's range.
        separable: learn variances only, no covariances (sep-CMA-ES): for hundreds of genes and more.

    Raises:
        ConfigError: categorical genes, no free gene, or arguments out of range.
    """

    title = "CMA-ME"
    multi_objective: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = KINDS - {"categorical"}

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        objective: str | None = None,
        descriptors: list[str] | None = None,
        ranges: list[list[float] | None] | None = None,
        archive: Shape = "grid",
        cells: int | list[int] = 10,
        emitters: int = 2,
        popsize: int | None = None,
        sigma0: float = 0.25,
        separable: bool = False,
    ) -> None:
        require(type(self), self.title, spec, objectives, seed)
        quality = objective_named(objectives, objective, "strategy.objective")
        check_range("emitters", emitters, 1, 1000)
        check_range("popsize", 4 if popsize is None else popsize, 4, 100_000)
        check_range("sigma0", sigma0, 1e-6, 1)
        self._descriptors = Descriptors(spec, objectives, descriptors, ranges)
        self._shape, self._cells = archive, cells_of(archive, cells, len(self._descriptors))
        self._coordinates = Coordinates(spec)
        free = len(self._coordinates.names)
        self._each = popsize or 4 + int(3 * np.log(free))
        self._count, self._sigma0, self._separable = emitters, sigma0, separable
        self._replay: Iterator[Array] = iter(())
        super().__init__(spec, (quality,), seed=seed, popsize=emitters * self._each)

    def elites(self) -> list[Elite]:
        """The best candidate of every filled cell, as of the last whole generation; the ids are counted from 0."""
        data = self._archive.data(["id", "solution", "objective", "measures"])
        return [
            Elite(int(i), self._genome(solution), float(gain), tuple(measures.tolist()))
            for i, solution, gain, measures in zip(*data.values(), strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """What `Generations` saves, and the descriptors of every generation, the present one's last."""
        measures = [*self._measures, *([self._measured] if self._genomes else [])]
        shape = (len(measures), self._popsize, len(self._descriptors))
        return {**super().state_dict(), "measures": np.array(measures, dtype=np.float64).reshape(shape)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Generations.load_state_dict`."""
        self._replay = iter(np.array(state["measures"], dtype=np.float64))
        super().load_state_dict(state)
        self._replay = iter(())

    def _settings(self) -> dict[str, Any]:
        return {
            "descriptors": self._descriptors.names,
            "ranges": [list(ends) for ends in self._descriptors.ranges],
            "archive": self._shape,
            "cells": self._cells,
            "emitters": self._count,
            "sigma0": self._sigma0,
            "separable": self._separable,
        }

    def _start(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        start, chosen = self._coordinates.point(self._spec.initial)
        start = np.concatenate([start, (chosen + 0.5) / 2])
        self._archive: Archive = make_archive(self._shape, self._cells, self._descriptors.ranges, len(start), rng, None)
        self._emitters = [
            EvolutionStrategyEmitter(
                self._archive,
                x0=start,
                sigma0=self._sigma0,
                ranker="2imp",
                es="sep_cma_es" if self._separable else "cma_es",
                batch_size=self._each,
                seed=int(child),
            )
            for child in np.random.SeedSequence([seed, 1]).generate_state(self._count)
        ]
        self._points = np.empty((0, len(start)))
        self._measures: list[Array] = []
        self._told_before = 0

    def _draw(self) -> list[Genome]:
        self._points = np.concatenate([np.array(emitter.ask()) for emitter in self._emitters])
        nothing = np.full((self._popsize, len(self._descriptors)), np.nan)
        self._measured = np.array(next(self._replay, nothing))
        return [self._genome(point) for point in self._points]

    def _genome(self, point: Array) -> Genome:
        """The genome of a point, mirrored into the unit cube."""
        inside = 1 - np.abs(1 - np.mod(point, 2.0))
        numbers = len(self._coordinates.start)
        return self._coordinates.genome(inside[:numbers], (inside[numbers:] >= 0.5).astype(np.int64))

    def _gain(self, index: int, candidate: Candidate, evaluation: Evaluation) -> float:
        assert candidate.genome is not None, "it was proposed"
        gain, measures = gain_of(evaluation, self._objective), self._descriptors.of(candidate.genome, evaluation)
        if measures is None:
            return math.nan
        self._measured[index] = measures
        return gain

    def _learn(self, gains: Array) -> None:
        self._measures.append(self._measured)
        super()._learn(gains)
        self._told_before += self._popsize

    def _move(self, gains: Array) -> None:
        known = np.flatnonzero(np.isfinite(gains))
        status, value = np.zeros(len(gains), dtype=np.int32), np.zeros(len(gains))
        before = self._told_before
        with np.errstate(over="ignore", invalid="ignore"):  # extreme scores
            found = self._archive.add(self._points[known], gains[known], self._measured[known], id=before + known)
            status[known], value[known] = found["status"], np.nan_to_num(found["value"])
            # The emitters need a number for everything: failures are as bad as the worst and improve nothing.
            worst = np.flatnonzero(np.isnan(gains))
            value[worst] = value[known].min() - 1
            objective = np.where(np.isnan(gains), gains[known].min(), gains)
            measures = np.where(np.isnan(gains)[:, None], self._measured[known[0]], self._measured)
            for i, emitter in enumerate(self._emitters):
                own = slice(i * self._each, (i + 1) * self._each)
                info: dict[str, Any] = {"status": status[own], "value": value[own]}
                emitter.tell(self._points[own], objective[own], measures[own], info)

    def _drawn(self) -> dict[str, Any]:
        return {"points": np.array(self._points if self._genomes else self._points[:0])}

    def _take(self, drawn: Mapping[str, Any]) -> list[Genome]:
        self._points = np.array(drawn["points"], dtype=np.float64)
        return [self._genome(point) for point in self._points]

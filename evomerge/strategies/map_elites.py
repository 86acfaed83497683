"""MAP-Elites: the best candidate of every kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.archives.cycle import Quality, niches
from evomerge.strategies.archives.grids import Archive, Shape, add, archive_state, cells_of, make_archive, refill
from evomerge.strategies.archives.ribs_import import GaussianEmitter, IsoLineEmitter
from evomerge.strategies.bases.capabilities import check_range
from evomerge.strategies.bases.steady_state import VARIED, Array, Choices, SteadyState
from evomerge.strategies.variation.base import Settings
from evomerge.strategies.variation.choose import variation_of
from evomerge.strategies.variation.coordinates import Spread
from evomerge.strategies.variation.crossover import Angle
from evomerge.strategies.variation.operators import reset
from evomerge.strategies.variation.singular import singular_noise

EMITTERS = {"iso_line": 0.01, "gaussian": 0.1, "crossover": 0.1, "singular": 0.5}
"""The usual `sigma` of each."""

MIXING = 0.01
"""Standard deviation of the weights of two parents around 1, before they are divided by their sum (CycleQD's)."""

GRID_STD = 0.5
"""Standard deviations of grids and whole numbers are at least this many steps, or changes would be rounded away."""


@dataclass(frozen=True)
class Elite:
    """The best candidate of one cell: its id, genome, gain (larger is better) and descriptors."""

    candidate: int
    genome: Genome
    gain: float
    descriptors: tuple[float, ...]


class MapElites(SteadyState):
    """MAP-Elites (Mouret and Clune 2015, arXiv 1504.04909) with the archives and emitters of `ribs`.

    An archive divides the space of descriptors (`Descriptors`) into cells and keeps the best candidate of each. The
    first `initial` proposals are the spec's start (and its seeds, if it has any) and random genomes; from then on each
    varies elites drawn uniformly: along the line to another one (``iso_line``, Vassiliades and Mouret 2018, arXiv
    1804.03906), by Gaussian noise (``gaussian``), as a child of two that M2N2 would make, with noise (``crossover``;
    the two may be the same, as in that paper's public code), or as the mean of two different ones with noise along the
    singular directions of all elites (``singular``; see `singular_noise`). All work on the unit cube, clipped to it;
    categorical and boolean genes are numbers' middles of intervals there, and are drawn anew with a probability of one
    over the free genes.

    Evaluations that are not ``ok``, and scores or descriptors that are not numbers, are not told to the archive;
    descriptors out of range belong to the outermost cells. A score equal to an elite's does not replace it.

    With ``quality=cyclic`` (CycleQD, Kuroki et al., arXiv 2410.14735) there is an archive for every objective, which
    has that as its quality and all others as descriptors. Archives take turns, candidate by candidate, to be where
    parents come from, and every candidate is offered to all. Elites of ``sampling=quality`` are parents by how good
    they are in all respects. CycleQD's last step, a mean of the elites, is not taken: there is the search's front.
    Candidates from elsewhere are offered to the archive too. While it is empty, random genomes are proposed.

    Args:
        spec: the genes, of any kind.
        objectives: one or several; `objective` is the quality, the others may be descriptors.
        seed: of all that is random here.
        objective: name of the quality; the first for ``None``.
        descriptors, ranges: see `Descriptors`; of cyclic quality there is a range for every objective.
        quality: ``fixed``, or ``cyclic``: all objectives in turn.
        sampling: of parents: ``uniform``, or by ``quality`` (see `cycle.Niche.odds`).
        archive: ``grid``, or ``cvt`` for many descriptors.
        cells: of a grid for each descriptor, or one number for all; of a tessellation, all.
        emitter: ``iso_line``, ``gaussian``, ``crossover`` or ``singular``.
        sigma: standard deviation of the noise, in units of a gene's range; for ``None`` 0.01 with ``iso_line`` (its
            paper's) and 0.1 with the others; with ``singular`` in units of the elites' own deviation in each
            direction, and 0.5.
        line_sigma: standard deviation along the line; 0.2 is its paper's.
        angle: of a crossover; see `crossover.child_of`.
        initial: how many random genomes come first.
        spread: their standard deviation around the start, in units of a gene's range; uniform for ``None``; ``auto``
            as in `SteadyState`.
        batch: how many ``ask(None)`` proposes.

    Raises:
        ConfigError: no free gene, or arguments out of range.
    """

    title: ClassVar[str] = "MAP-Elites"
    multi_objective: ClassVar[bool] = True

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        objective: str | None = None,
        descriptors: list[str] | None = None,
        ranges: list[list[float] | None] | None = None,
        quality: Quality = "fixed",
        sampling: Literal["uniform", "quality"] = "uniform",
        archive: Shape = "grid",
        cells: int | list[int] = 10,
        emitter: Literal["iso_line", "gaussian", "crossover", "singular"] = "iso_line",
        sigma: float | None = None,
        line_sigma: float = 0.2,
        angle: Angle = "segment",
        initial: int = 20,
        spread: Spread = None,
        batch: int = 16,
    ) -> None:
        super().__init__(spec, objectives, seed=seed, spread=spread, batch=batch)
        for name, word, known in (
            ("emitter", emitter, tuple(EMITTERS)),
            ("sampling", sampling, ("uniform", "quality")),
        ):
            if word not in known:
                raise ConfigError(f"strategy.{name} is {word!r}", nearest(word, known))
        self._vary = variation_of(spec, Settings(angle=angle, mutation=0.0))  # the noise is added to coordinates
        sigma = sigma if sigma is not None else EMITTERS[emitter]
        check_range("sigma", sigma, 0, 1)
        check_range("line_sigma", line_sigma, 0, 10)
        check_range("initial", initial, 0, math.inf)
        self._niches = niches(spec, objectives, quality, objective, descriptors, ranges)
        self._objective, self._descriptors = self._niches[0].quality, self._niches[0].descriptors
        self._sampling, self._turn = sampling, 0
        self._shape, self._cells = archive, cells_of(archive, cells, len(self._descriptors))
        self._emitter_name, self._line_sigma, self._angle = emitter, line_sigma, angle
        self._initial, self._noise = initial, sigma
        self._sigma = np.concatenate(
            [np.maximum(sigma, GRID_STD * self._coordinates.steps), np.full(len(self._counts), sigma)]
        )
        self._build(None)

    def elites(self, turn: int = 0) -> list[Elite]:
        """The best candidate of every filled cell, in the order in which the cells were first filled.

        Args:
            turn: of which objective's archive, where quality is cyclic.
        """
        data = self._archives[turn].data(["id", "solution", "objective", "measures"])
        return [
            Elite(int(i), self._coordinates.genome(*self._split(solution)), float(gain), tuple(measures.tolist()))
            for i, solution, gain, measures in zip(*data.values(), strict=True)
        ]

    def to_beat(self, candidate: Candidate) -> int | None:
        """The elite of the candidate's cell; ``None`` where there is none, or where cells depend on scores."""
        if candidate.genome is None or not self._descriptors.of_genes_alone:
            return None
        measures = self._descriptors.of(candidate.genome, Evaluation(candidate.id, "ok"))
        assert measures is not None
        occupied, elite = self._archives[0].retrieve_single(measures)
        return int(elite["id"]) if occupied else None

    def _settings(self) -> dict[str, Any]:
        others = [
            [niche.quality.name, *(list(ends) for ends in niche.descriptors.ranges)] for niche in self._niches[1:]
        ]
        return {
            **({"cycle": others} if others else {}),  # runs of before do not say
            **({"sampling": self._sampling} if self._sampling != "uniform" else {}),
            "descriptors": self._descriptors.names,
            "ranges": [list(ends) for ends in self._descriptors.ranges],
            "archive": self._shape,
            "cells": self._cells,
            "emitter": self._emitter_name,
            "sigma": self._noise,
            "line_sigma": self._line_sigma,
            "angle": self._angle,
            "initial": self._initial,
        }

    def _held(self) -> dict[str, Any]:
        first, *others = [archive_state(archive) for archive in self._archives]
        return {"archive": first, **({"others": others, "turn": self._turn} if others else {})}

    def _hold(self, state: Mapping[str, Any]) -> None:
        saved = [state["archive"], *state.get("others", [])]
        if len(saved) != len(self._niches):
            raise ConfigError(
                f"the saved MAP-Elites has {len(saved)} archives, this one has {len(self._niches)}",
                "a search resumes with the settings that it began with",
            )
        self._turn = int(state.get("turn", 0))
        self._build([np.array(each["centroids"], dtype=np.float64) for each in saved])
        for archive, each in zip(self._archives, saved, strict=True):
            refill(archive, each)

    def _build(self, centroids: Sequence[Array] | None) -> None:
        """Empty archives and their emitters, which share our random generator, so that its state is theirs."""
        dimension = len(self._sigma)
        self._archives: list[Archive] = []
        self._emitters: list[IsoLineEmitter | GaussianEmitter] = []
        options: dict[str, Any] = {
            "x0": np.full(dimension, 0.5),  # never used: an empty archive does not get here
            "lower_bounds": np.zeros(dimension),
            "upper_bounds": np.ones(dimension),
            "batch_size": 1,
            "seed": self._rng,
        }
        for number, niche in enumerate(self._niches):
            ranges, known = niche.descriptors.ranges, centroids[number] if centroids else None
            archive = make_archive(self._shape, self._cells, ranges, dimension, self._rng, known)
            archive.odds = niche.odds if self._sampling == "quality" else None
            self._archives.append(archive)
            if self._emitter_name == "iso_line":
                noise: dict[str, Any] = {"iso_sigma": self._sigma, "line_sigma": self._line_sigma}
                self._emitters.append(IsoLineEmitter(archive, **noise, **options))
            else:
                self._emitters.append(GaussianEmitter(archive, sigma=self._sigma, **options))

    def _begun(self) -> bool:
        return self._proposed > self._initial and not self._archives[0].empty

    def _varied(self) -> tuple[Array, Choices, int, tuple[int, ...]]:
        """A variation of elites of the archive whose turn it is."""
        turn, self._turn = self._turn, (self._turn + 1) % len(self._niches)
        archive = self._archives[turn]
        made = {"crossover": self._crossed, "singular": self._mean}.get(self._emitter_name)
        point, choices = made(archive) if made else self._split(self._emitters[turn].ask()[0])
        if len(choices):
            chosen = self._rng.random(len(choices)) < 1 / len(self._sigma)
            if not len(point):  # nothing else varies
                chosen[int(self._rng.integers(len(choices)))] = True
            choices = reset(choices, chosen, self._counts, self._rng)
        return point, choices, VARIED, tuple(dict.fromkeys(archive.sampled))

    def _crossed(self, archive: Archive) -> tuple[Array, Choices]:
        """Coordinates and choices of a child of two elites, with noise."""
        elites = [self._coordinates.genome(*self._split(row)) for row in archive.sample_elites(2)["solution"]]
        point, choices = self._coordinates.point(self._vary.child(elites[0], elites[1], self._rng))
        sigma = self._sigma[: len(point)]
        if sigma.any():
            point = np.clip(point + sigma * self._rng.standard_normal(len(point)), 0.0, 1.0)
        return point, choices

    def _mean(self, archive: Archive) -> tuple[Array, Choices]:
        """The mean of two elites, with noise along the singular directions of all; choices of either."""
        rng, everyone = self._rng, archive.data("solution")
        alone = len(everyone) < 2
        rows = archive.sample_elites(1 if alone else 2, replace=False)["solution"]
        first, second = self._split(rows[0]), self._split(rows[-1])
        weights = np.abs(rng.normal(1.0, MIXING, 2))
        share = float(weights[0] / weights.sum())
        point = share * first[0] + (1 - share) * second[0]
        numbers = len(point)
        noise = singular_noise(everyone[:, :numbers], self._noise, rng) if numbers else np.zeros(0)
        if not noise.any():  # elites that are alike, or only one
            noise = GRID_STD * EMITTERS["gaussian"] * rng.standard_normal(numbers)
        choices = np.where(rng.random(len(first[1])) < share, first[1], second[1])
        return np.clip(point + noise, 0.0, 1.0), choices

    def _learn(self, point: Array, choices: Choices, tag: int | None, candidate: Candidate, told: Evaluation) -> None:
        """Offer a candidate to all archives."""
        genome = candidate.genome
        if genome is None:
            return
        places = [niche.placed(genome, told) for niche in self._niches]
        solution = np.concatenate([point, (choices + 0.5) / np.maximum(self._counts, 1)])
        for archive, (gain, measures) in zip(self._archives, places, strict=True):
            if measures is not None:
                add(archive, solution, gain, measures, candidate.id)

    def _split(self, solution: Array) -> tuple[Array, Choices]:
        """Coordinates and choices of a solution."""
        numbers = len(self._coordinates.start)
        choices = np.minimum((solution[numbers:] * self._counts).astype(np.int64), self._counts - 1)
        return np.array(solution[:numbers], dtype=np.float64), choices

"""What the phases for several preferences aim at: where each begins, and what is far and near for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Candidate
from evomerge.genomes.genome import GenomeSpec
from evomerge.objectives import Objective
from evomerge.preferences import distances, nearest_by, scale_of
from evomerge.protocols import Strategy
from evomerge.search.incumbent import Incumbent
from evomerge.search.phases import Baselines, Phase
from evomerge.strategies.bases.scalarised import Scalarised


@dataclass(frozen=True)
class Aims:
    """Of all preferences of a phase, taken when the first of them begins: what a later one finds is not theirs.

    Attributes:
        phase: its name.
        winners: the front's nearest by each preference, which its search space is made from; ``None`` of an empty
            front.
        ideal, scale: of every objective the front's best gain, and from there to the front's worst; of the baselines
            where there is no front yet.
    """

    phase: str
    winners: tuple[Candidate | None, ...]
    ideal: tuple[float, ...]
    scale: tuple[float, ...]

    @staticmethod
    def of(phase: Phase, incumbent: Incumbent, baselines: Baselines) -> Aims:
        """What is aimed at as things stand."""
        objectives = incumbent.objectives
        front = list(incumbent.values)
        rows = [_gain(values, objectives) for values in [*incumbent.values.values()] or [*baselines.values()]]
        gains = np.array([row for row in rows if np.isfinite(row).all()] or [np.zeros(len(objectives))])
        ideal = gains.max(axis=0)
        winners: list[Candidate | None] = [None] * len(phase.preferences)
        if front:
            weights = [[wanted.get(o.name, 0.0) for o in objectives] for wanted in phase.preferences]
            winners = [incumbent.front[front[nearest_by(gains, row)]] for row in weights]
        return Aims(phase.name, tuple(winners), tuple(ideal.tolist()), tuple(scale_of(gains, ideal).tolist()))

    def state(self) -> dict[str, Any]:
        """As JSON values; winners by number."""
        winners = [winner.id if winner is not None else None for winner in self.winners]
        return {"phase": self.phase, "winners": winners, "ideal": list(self.ideal), "scale": list(self.scale)}

    @staticmethod
    def from_state(state: Mapping[str, Any] | None, known: Mapping[int, Candidate]) -> Aims | None:
        """What `state` gave, with the candidates that it names."""
        if state is None:
            return None
        winners = tuple(known[int(number)] if number is not None else None for number in state["winners"])
        ideal, scale = (tuple(map(float, state[key])) for key in ("ideal", "scale"))
        return Aims(str(state["phase"]), winners, ideal, scale)


@dataclass(frozen=True)
class Nearness:
    """The number that a strategy is shown for a preference: minus the distance to the ideal (`preferences.distances`).

    Attributes:
        objectives: in order.
        weights, ideal, scale: of each.
    """

    objectives: tuple[Objective, ...]
    weights: tuple[float, ...]
    ideal: tuple[float, ...]
    scale: tuple[float, ...]

    def __call__(self, values: Mapping[str, float]) -> float:
        """The number for these values of the objectives, which are in the user's own directions."""
        gains, weights = _gain(values, self.objectives)[None], np.array([self.weights])
        return -float(distances(gains, weights, np.array(self.ideal), np.array(self.scale))[0, 0])


def strategy_of(
    phase: Phase, spec: GenomeSpec, baselines: Baselines, aims: Aims | None, incumbent: Incumbent
) -> Strategy:
    """The strategy of a phase, shown how near candidates are by its preference where it has one."""
    strategy = phase.strategy(spec, baselines)
    if phase.preference is None or aims is None:
        return strategy
    objectives = incumbent.objectives
    weights = tuple(float(phase.preference.get(o.name, 0.0)) for o in objectives)
    return Scalarised(strategy, Nearness(objectives, weights, aims.ideal, aims.scale))


def _gain(values: Mapping[str, float], objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """Larger is better, NaN where an objective is missing; of shape ``(objectives,)``."""
    return np.array([o.gain(values.get(o.name, np.nan)) for o in objectives], dtype=np.float64)

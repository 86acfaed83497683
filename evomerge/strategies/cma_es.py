"""CMA-ES through pycma, as an ask/tell strategy that replays exactly.

Hansen, "The CMA Evolution Strategy: A Tutorial" (arXiv 1604.00772).
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, FitnessError
from evomerge.genome import Genome, GenomeSpec
from evomerge.protocols import Objective, Proposal

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns when matplotlib, which nothing here needs, is not installed
    import cma
    from cma.sigma_adaptation import CMAAdaptSigmaCSA

Array = NDArray[np.float64]

SMALLEST_STD = 1e-7
"""Standard deviations, in units of a gene's range, never fall below this: finer changes vanish when float32
weights are rounded, and pycma runs into underflow long after a search has converged."""

GRID_STD = 0.2
"""The same for genes on a grid, in steps: below, all candidates of a generation would be one. pycma's own
floor for integer variables."""


class CmaEs:
    """Single-objective CMA-ES over continuous genes; implements `protocols.Strategy`.

    A generation is sampled at once and handed out by `ask` in any portions; when all of it has been told,
    in any order, the distribution moves. Until then `ask` returns nothing more.

    pycma works on the unit cube (every gene's range scaled to 0..1) and keeps to it by its bound transform,
    which is smooth and maps what falls outside back inside near the edge. Genes on a grid are rounded in
    the proposals only; pycma learns from the points it drew. pycma sees ranks, not values: equal scores
    keep the order in which they were asked; evaluations that are not ``ok`` and scores that are not finite
    rank behind all others; a generation in which nothing is ok is drawn anew from the same distribution.

    Candidates that it did not propose (baselines) and candidates told a second time are ignored. Two equal
    proposals of a generation are told in the order in which they were asked.

    Args:
        spec: the genes: continuous; those with equal bounds keep their value.
        objectives: one.
        seed: of all that is random here. The state of `numpy.random` is neither read nor changed.
        sigma0: initial standard deviation, in units of a gene's range.
        popsize: candidates per generation; 4 + 3 ln(free genes), rounded down, for ``None``.
        separable: learn variances only, no covariances: for hundreds of genes and more.

    Raises:
        ConfigError: other kinds of genes, no free gene, several objectives, or arguments out of range.
    """

    _history: list[Array]  # of all generations told, their gains
    _drawn: list[Array]  # the present generation as pycma drew it
    _points: list[Array]  # the same without the padding
    _genomes: list[Genome]
    _asked: int  # how many of them were handed out
    _gains: Array
    _told: NDArray[np.bool_]
    _waiting: dict[Genome, deque[int]]  # handed out and not told: numbers within the generation

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        sigma0: float = 0.25,
        popsize: int | None = None,
        separable: bool = False,
    ) -> None:
        if len(objectives) != 1:
            names = ", ".join(o.name for o in objectives)
            raise ConfigError(
                f"strategy CMA-ES was given {len(objectives)} objectives ({names})",
                "it optimises one",
                "give the fitness one objective, or choose another strategy",
            )
        for gene in spec:
            if gene.kind != "continuous":
                raise ConfigError(
                    f"strategy CMA-ES was given the {gene.kind} gene {gene.name!r}",
                    "it varies continuous genes",
                    "fix that gene in the search space, or choose another strategy (random)",
                )
        if not (math.isfinite(sigma0) and 0 < sigma0 <= 1):
            raise ConfigError(f"strategy.sigma0 is {sigma0}", "above 0 and at most 1, in units of a gene's range")
        if popsize is not None and popsize < 3:
            raise ConfigError(f"strategy.popsize is {popsize}", "at least 3, or null for 4 + 3 ln(genes)")
        if seed < 0:
            raise ConfigError(f"search.seed is {seed}", "0 or more")
        low, high = spec.bounds
        self._free = np.flatnonzero(low < high)
        if len(self._free) == 0:
            raise ConfigError("strategy CMA-ES was given no free gene", "every gene has low equal to high")
        self._spec = spec
        self._initial = np.array(spec.initial.values, dtype=np.float64)
        self._objective = objectives[0]
        self._low, self._span = low[self._free], (high - low)[self._free]
        self._popsize = popsize or 4 + int(3 * math.log(len(self._free)))
        self._sigma0 = float(sigma0)
        self._separable = separable
        self._start(seed)

    def ask(self, n: int | None = None) -> list[Proposal]:
        """Up to `n` proposals of the present generation, all that remain for ``None``."""
        if not self._genomes:
            self._sample()
        end = self._popsize if n is None else min(self._asked + max(n, 0), self._popsize)
        proposals = [Proposal(genome) for genome in self._genomes[self._asked : end]]
        for index in range(self._asked, end):
            self._waiting.setdefault(self._genomes[index], deque()).append(index)
        self._asked = end
        return proposals

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Keep the score; move the distribution when it is the generation's last.

        Raises:
            FitnessError: the evaluation is ok and lacks the objective.
        """
        waiting = self._waiting.get(candidate.genome) if candidate.genome is not None else None
        if not waiting:
            return
        gain = self._gain(evaluation)
        index = waiting.popleft()
        self._gains[index] = gain
        self._told[index] = True
        if self._told.all():
            self._learn(self._gains)

    def state_dict(self) -> dict[str, Any]:
        """Seed, settings and the scores of all generations (higher is better, NaN for failures).

        The rest follows: the same seed draws the same points, and the same scores move the distribution in
        the same way.
        """
        return {
            "seed": self._seed,
            "settings": self._settings(),
            "history": np.array(self._history, dtype=np.float64).reshape(-1, self._popsize),
            "sampled": bool(self._genomes),
            "asked": self._asked,
            "gains": self._gains.copy(),
            "told": self._told.copy(),
            "points": np.array(self._points, dtype=np.float64).reshape(-1, len(self._free)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Draw and learn again all that `state` tells of.

        Should this machine's numpy or linear algebra round differently, the present generation is taken
        from the state, a warning is given, and the search goes on without being bit for bit the same.

        Raises:
            ConfigError: the state is of a CMA-ES with other settings or genes.
        """
        ours, theirs = self._settings(), dict(state["settings"])
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise ConfigError(
                    f"the saved CMA-ES has {name} {theirs.get(name)!r}, this one has {value!r}",
                    "a search resumes with the settings that it began with",
                )
        self._start(int(state["seed"]))
        for gains in np.asarray(state["history"], dtype=np.float64):
            self._sample()
            self._learn(gains)
        if not state["sampled"]:
            return
        self._sample()
        saved = np.asarray(state["points"], dtype=np.float64)
        if not np.array_equal(saved, np.array(self._points)):
            warnings.warn(
                "this machine does not repeat the saved CMA-ES bit for bit (another numpy, processor or thread count); "
                "the search goes on from the saved generation",
                stacklevel=2,
            )
            self._points = list(saved)
            self._genomes = [self._genome(point) for point in saved]
        self._asked = int(state["asked"])
        self._gains = np.array(state["gains"], dtype=np.float64)
        self._told = np.array(state["told"], dtype=np.bool_)
        for index in np.flatnonzero(~self._told[: self._asked]):
            self._waiting.setdefault(self._genomes[index], deque()).append(int(index))

    def _settings(self) -> dict[str, Any]:
        """What a saved state must agree on."""
        return {
            "sigma0": self._sigma0,
            "popsize": self._popsize,
            "separable": self._separable,
            "genes": [[gene.name, gene.low, gene.high, gene.start, gene.resolution] for gene in self._spec],
            "objective": [self._objective.name, self._objective.direction],
        }

    def _start(self, seed: int) -> None:
        """Begin from nothing."""
        rng = np.random.default_rng(seed)
        genes = [self._spec.genes[i] for i in self._free]
        x0 = np.clip((np.array([float(gene.start) for gene in genes]) - self._low) / self._span, 0.0, 1.0)
        steps = np.array([gene.resolution or 0.0 for gene in genes]) / self._span
        smallest = np.maximum(GRID_STD * steps, SMALLEST_STD)
        if len(x0) == 1:  # pycma refuses one dimension; a second one that nothing depends on does no harm
            x0, smallest = np.append(x0, 0.5), np.append(smallest, SMALLEST_STD)
        options = {
            "bounds": [0, 1],
            "popsize": self._popsize,
            "CMA_diagonal": self._separable,
            # CSA in every dimension: from 300 on pycma would take another rule, which draws from numpy.random.
            "AdaptSigma": CMAAdaptSigmaCSA,
            "minstd": smallest,
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": math.nan,  # otherwise pycma seeds numpy.random
            "signals_filename": "",
            "verbose": -9,
            "verb_disp": 0,
            "verb_log": 0,
            "verb_time": False,
        }
        self._seed = seed
        self._cma = cma.CMAEvolutionStrategy(x0, self._sigma0, options)
        self._history = []
        self._clear()

    def _clear(self) -> None:
        """Forget the present generation."""
        self._drawn, self._points, self._genomes = [], [], []
        self._asked = 0
        self._gains = np.full(self._popsize, np.nan)
        self._told = np.zeros(self._popsize, dtype=np.bool_)
        self._waiting = {}

    def _sample(self) -> None:
        """Draw a generation."""
        self._drawn = list(self._cma.ask())
        self._points = [np.array(point[: len(self._free)]) for point in self._drawn]
        self._genomes = [self._genome(point) for point in self._points]

    def _genome(self, point: Array) -> Genome:
        values = self._initial.copy()
        values[self._free] = self._low + self._span * point
        return self._spec.genome(values)

    def _gain(self, evaluation: Evaluation) -> float:
        """The objective, larger is better, or NaN when there is nothing to learn from it."""
        if not evaluation.ok:
            return math.nan
        if self._objective.name not in evaluation.objectives:
            raise FitnessError(
                f"the evaluation of candidate {evaluation.candidate} has no objective {self._objective.name!r}",
                f"it has {', '.join(evaluation.objectives) or 'none'}",
            )
        gain = self._objective.gain(evaluation.objectives[self._objective.name])
        return gain if math.isfinite(gain) else math.nan

    def _learn(self, gains: Array) -> None:
        """Move the distribution by the ranks of a whole generation."""
        if not np.isnan(gains).all():
            # Stable, so that ties fall alike on every machine; NaN sorts last. pycma minimises.
            order = np.argsort(-gains, kind="stable")
            ranks = np.empty(len(order))
            ranks[order] = np.arange(len(order))
            self._cma.tell(self._drawn, ranks.tolist())
        self._history.append(np.array(gains))
        self._clear()

"""CMA-ES through pycma, as an ask/tell strategy that replays exactly.

Hansen, "The CMA Evolution Strategy: A Tutorial" (arXiv 1604.00772).
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, FitnessError
from evomerge.genome import Genome, GenomeSpec
from evomerge.protocols import Objective, Proposal
from evomerge.strategies.capabilities import KINDS
from evomerge.strategies.categorical import Categorical
from evomerge.strategies.coordinates import Coordinates

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns when matplotlib, which nothing here needs, is not installed
    import cma
    from cma.sigma_adaptation import CMAAdaptSigmaCSA

Array = NDArray[np.float64]

SMALLEST_STD = 1e-7
"""Standard deviations, in units of a gene's range, never fall below this: finer changes vanish when float32
weights are rounded, and pycma runs into underflow long after a search has converged."""

GRID_STD = 0.2
"""The same for genes on a grid and for whole numbers, in steps: below, all candidates of a generation would be one.
pycma's own floor for integer variables; what CMA-ES with margin (arXiv 2205.13482) achieves by moving the mean."""


class CmaEs:
    """Single-objective CMA-ES over genes of every kind; implements `protocols.Strategy`.

    A generation is sampled at once and handed out by `ask` in any portions; when all of it has been told,
    in any order, the distribution moves. Until then `ask` returns nothing more.

    pycma works on the unit cube (every gene's range scaled to 0..1) and keeps to it by its bound transform,
    which is smooth and maps what falls outside back inside near the edge. Genes on a grid and integer genes are
    rounded in the proposals only (`Coordinates`); pycma learns from the points it drew. Categorical and boolean genes
    have probabilities of their own, which learn from the same ranks (`Categorical`: together, CatCMA). All choices
    are equally likely at first, and none is ever given up.

    pycma sees ranks, not values: equal scores keep the order in which they were asked; evaluations that are not
    ``ok`` and scores that are not finite rank behind all others; a generation in which nothing is ok is drawn anew
    from the same distribution.

    Candidates that it did not propose (baselines) and candidates told a second time are ignored. Two equal
    proposals of a generation are told in the order in which they were asked.

    Args:
        spec: the genes; those of one value keep it.
        objectives: one.
        seed: of all that is random here. The state of `numpy.random` is neither read nor changed.
        sigma0: initial standard deviation, in units of a gene's range.
        popsize: candidates per generation; 4 + 3 ln(free genes), rounded down, for ``None``.
        separable: learn variances only, no covariances: for hundreds of genes and more.

    Raises:
        ConfigError: no free gene, several objectives, or arguments out of range.
    """

    asynchronous: ClassVar[bool] = False
    multi_objective: ClassVar[bool] = False
    kinds: ClassVar[frozenset[str]] = KINDS

    _history: list[Array]  # of all generations told, their gains
    _drawn: list[Array]  # the present generation as pycma drew it
    _points: list[Array]  # the same without the padding
    _choices: NDArray[np.int64]  # numbers of choices, a row for each of them
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
        if not (math.isfinite(sigma0) and 0 < sigma0 <= 1):
            raise ConfigError(f"strategy.sigma0 is {sigma0}", "above 0 and at most 1, in units of a gene's range")
        if popsize is not None and popsize < 3:
            raise ConfigError(f"strategy.popsize is {popsize}", "at least 3, or null for 4 + 3 ln(genes)")
        if seed < 0:
            raise ConfigError(f"search.seed is {seed}", "0 or more")
        self._spec = spec
        self._coordinates = Coordinates(spec)
        free = len(self._coordinates.names)
        if free == 0:
            raise ConfigError("strategy CMA-ES was given no free gene", "every gene has low equal to high")
        self._objective = objectives[0]
        self._popsize = popsize or 4 + int(3 * math.log(free))
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
            "points": np.array(self._points, dtype=np.float64).reshape(-1, len(self._coordinates.start)),
            "choices": self._choices.copy(),
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
        choices = np.array(state["choices"], dtype=np.int64)
        if not (np.array_equal(saved, np.array(self._points)) and np.array_equal(choices, self._choices)):
            warnings.warn(
                "this machine does not repeat the saved CMA-ES bit for bit (another numpy, processor or thread count); "
                "the search goes on from the saved generation",
                stacklevel=2,
            )
            self._points, self._choices = list(saved), choices
            self._genomes = self._decoded()
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
            "genes": [
                [gene.name, gene.kind, gene.low, gene.high, gene.start, gene.resolution, list(gene.choices)]
                for gene in self._spec
            ],
            "objective": [self._objective.name, self._objective.direction],
        }

    def _start(self, seed: int) -> None:
        """Begin from nothing."""
        rng = np.random.default_rng(seed)
        start = self._coordinates.start
        smallest = np.maximum(GRID_STD * self._coordinates.steps, SMALLEST_STD)
        missing = max(
            2 - len(start), 0
        )  # pycma refuses less than two dimensions; ones that nothing depends on do no harm
        x0, smallest = np.append(start, missing * [0.5]), np.append(smallest, missing * [SMALLEST_STD])
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
        self._choice_rng = np.random.default_rng([seed, 1])
        self._categorical = Categorical(self._coordinates.counts)
        self._history = []
        self._clear()

    def _clear(self) -> None:
        """Forget the present generation."""
        self._drawn, self._points, self._genomes = [], [], []
        self._choices = np.empty((0, len(self._coordinates.counts)), dtype=np.int64)
        self._asked = 0
        self._gains = np.full(self._popsize, np.nan)
        self._told = np.zeros(self._popsize, dtype=np.bool_)
        self._waiting = {}

    def _sample(self) -> None:
        """Draw a generation."""
        self._drawn = list(self._cma.ask())
        self._points = [np.array(point[: len(self._coordinates.start)]) for point in self._drawn]
        self._choices = self._categorical.sample(self._choice_rng, self._popsize)
        self._genomes = self._decoded()

    def _decoded(self) -> list[Genome]:
        """The genomes of the present generation."""
        pairs = zip(self._points, self._choices, strict=True)
        return [self._coordinates.genome(point, choices) for point, choices in pairs]

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
            if self._coordinates.counts:
                best = order[: min(self._popsize // 2, int(np.isfinite(gains).sum()))]
                weights = math.log((self._popsize + 1) / 2) - np.log(np.arange(1, len(best) + 1))
                self._categorical.learn(self._choices[best], weights / weights.sum())
        self._history.append(np.array(gains))
        self._clear()

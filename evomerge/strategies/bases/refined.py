"""The end of a search by a Gaussian process: what it has found, looked at as a whole.

A strategy that moves by generations forgets: of the scores of a hundred candidates its distribution keeps a mean and a
covariance. In a race, where each of them is known with an error of its own, all of them together say more of where the
best model is than the latest do. So the last candidates of a search are those that a Gaussian process over everything
known proposes, with estimates made anew by what has been learnt of the items since.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.encoding import pack_genomes, unpack_genomes
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Estimate, Proposal, Strategy
from evomerge.strategies.bases.capabilities import learner
from evomerge.strategies.bases.generations import Array, gain_of
from evomerge.strategies.bases.saving import InFlight, check_settings, settings_of
from evomerge.strategies.variation.coordinates import Coordinates

if TYPE_CHECKING:
    from evomerge.strategies.bases.gaussian_process import GaussianProcess

_LOG = logging.getLogger(__name__)

KEY = "search.refine.after"

Revised = Callable[[Sequence[int]], Sequence[Estimate | None]]
"""The first objective of candidates, by their ids, estimated with all that is known by now; ``None``: nothing new."""

KAPPAS = (1.0, 0.0, -1.0, -0.5)
"""Of the candidates of a round: what is surely good, what is likely best, and what may be better than that."""

BET = 1.0
"""Of the model that it bets on in the end."""

MEMORY = 300
"""Of how many candidates it is fitted to: the latest. The time of a fit grows with the third power."""

FEWEST = 4
"""Scores that it is fitted to at least."""

_APART = 0.02  # of a range: nearer in every gene, a candidate of a round says little that the other does not
_AWAY = 0.05
_NO_CHOICES: NDArray[np.int64] = np.empty(0, dtype=np.int64)
_OF_GENOMES = ("know_active", "begin_from", "to_beat")


class Refined:
    """Asks a strategy for its first candidates and a Gaussian process for all others; implements `protocols.Strategy`.

    Genes are coordinates of the unit cube. Each round of `batch` candidates is proposed after a fit to all that was
    told, the latest `MEMORY`: the maxima of ``mean - kappa * deviation`` for each of `KAPPAS`. What failed counts as
    the worst score known. In a race its candidates are scored on as many items at once as the best are in the end
    (`Race`): they are all good, so that little is saved by comparing them first.

    Nothing is remembered but what was told: the same evaluations give the same candidates to the bit.

    Args:
        strategy: whom to ask first.
        spec: of its genes, numbers only.
        objective: the one that it was built for.
        seed: of how candidates of a round are kept apart.
        after: candidates that are the strategy's own; of generations that have begun, all.
        batch: candidates of a round.

    Raises:
        ConfigError: genes that are no numbers, or arguments out of range.
    """

    def __init__(
        self, strategy: Strategy, spec: GenomeSpec, objective: Objective, *, seed: int, after: int, batch: int = 4
    ) -> None:
        check_refine(after, batch)
        check_genes(spec)
        self.inner, self._coordinates, self._objective = strategy, Coordinates(spec), objective
        self._seed, self._after, self._batch = seed, after, batch
        self._settings = settings_of(spec, [objective], after=after, batch=batch)
        self.asynchronous = bool(getattr(strategy, "asynchronous", False))
        self.estimates = bool(getattr(strategy, "estimates", True))
        self.by_generation = bool(getattr(strategy, "by_generation", False))
        for name in _OF_GENOMES:
            if hasattr(strategy, name):
                setattr(self, name, getattr(strategy, name))
        self._revised: Revised = lambda numbers: [None] * len(numbers)
        self._numbers: list[int] = []
        self._points: list[Array] = []
        self._told: list[tuple[float, float]] = []  # gain and error; NaN for what failed
        self._asked = self._rounds = 0
        self._theta: Array | None = None  # of the last fit
        self._start: Array | None = None  # that it began with
        self._fitted_at = -1  # how many had been told
        self._queue: list[Array] = []
        self._waiting: Counter[Genome] = Counter()  # the strategy's
        self._flight = InFlight(self._coordinates)
        self._fitted: GaussianProcess | None = None

    def know_estimates(self, revised: Revised) -> None:
        """Be told how to estimate anew what candidates have scored; comes before anything is asked or loaded."""
        self._revised = revised

    def at_once(self, candidate: Candidate) -> bool:
        """Whether a race scores a candidate on all items that it would score the best on, at once."""
        return self._flight.first(candidate.genome) is not None

    def ask(self, n: int | None = None) -> Sequence[Proposal]:
        """What the strategy proposes, and after enough of that up to a round of the Gaussian process's own."""
        if not self._refining:
            proposals = self.inner.ask(n)
            self._asked += len(proposals)
            self._waiting.update(proposal.genome for proposal in proposals)
            return proposals
        if n is not None and n < 1:
            return []
        if not self._queue:
            self._queue = self._round()
        taken, self._queue = self._queue[:n], self._queue[len(self._queue[:n]) :]
        return [Proposal(self._flight.add(point, _NO_CHOICES, 0)) for point in taken]

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Keep the score, and tell the strategy of candidates that are its own; others are ignored."""
        genome = candidate.genome
        if self._flight.first(genome) is not None:
            self._keep(candidate, evaluation)
            self._flight.take(genome)
        else:
            if genome is not None and self._waiting[genome]:
                self._keep(candidate, evaluation)
                self._waiting -= Counter([genome])
            self.inner.tell(candidate, evaluation)

    def inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Learn from a candidate that nobody here has proposed, and let the strategy, if it can."""
        if candidate.genome is not None:
            self._keep(candidate, evaluation)
        learner(self.inner)(candidate, evaluation)

    def favourite(self) -> Genome | None:
        """What is surely good by all that is known; before it has proposed anything, what the strategy bets on."""
        if not self._rounds:
            ask: Callable[[], Genome | None] = getattr(self.inner, "favourite", lambda: None)
            return ask()
        fitted = self._fit()
        return self._coordinates.genome(fitted.best(self._starts(fitted), BET), _NO_CHOICES)

    def expected(self, number: int) -> float | None:
        """The objective of a candidate, by its id, by what is known of all; ``None`` of those that it does not know."""
        if not self._rounds or number not in self._numbers:
            return None
        point = self._points[self._numbers.index(number)]
        return self._objective.gain(float(self._fit().predict(point[None])[0][0]))

    def state_dict(self) -> dict[str, Any]:
        """The strategy's state, and everything told."""
        waiting = list(self._waiting.elements())
        genes = len(self._coordinates.start)
        return {
            "inner": self.inner.state_dict(),
            "settings": self._settings,
            "numbers": np.array(self._numbers, dtype=np.int64),
            "points": np.array(self._points, dtype=np.float64).reshape(-1, genes),
            "told": np.array(self._told, dtype=np.float64).reshape(-1, 2),
            "asked": self._asked,
            "rounds": self._rounds,
            "theta": [] if self._theta is None else self._theta.tolist(),
            "start": [] if self._start is None else self._start.tolist(),
            "fitted_at": self._fitted_at,
            "queue": np.array(self._queue, dtype=np.float64).reshape(-1, genes),
            "waiting": pack_genomes(waiting) if waiting else None,
            "flight": self._flight.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ConfigError: the state is of another search.
        """
        check_settings("search.refine", self._settings, state["settings"])
        self.inner.load_state_dict(state["inner"])
        self._numbers = [int(number) for number in state["numbers"]]
        self._points = list(np.array(state["points"], dtype=np.float64))
        self._told = [(float(gain), float(error)) for gain, error in state["told"]]
        self._asked, self._rounds = int(state["asked"]), int(state["rounds"])
        self._theta, self._start = (np.array(state[key]) if len(state[key]) else None for key in ("theta", "start"))
        self._fitted_at = int(state["fitted_at"])
        self._queue = list(np.array(state["queue"], dtype=np.float64))
        self._waiting = Counter(unpack_genomes(state["waiting"]) if state["waiting"] is not None else ())
        self._flight.load(state["flight"])
        self._fitted = None

    @property
    def _refining(self) -> bool:
        known = sum(math.isfinite(gain) for gain, _ in self._told[-MEMORY:])
        return bool(self._rounds) or (self._asked >= self._after and known >= FEWEST)

    def _keep(self, candidate: Candidate, evaluation: Evaluation) -> None:
        assert candidate.genome is not None
        if evaluation.race.get("items") == 0:  # it fell on the cheap rung: what it is told with is a guess
            return
        error = evaluation.race.get(f"error/{self._objective.name}", 0.0)
        self._told.append((gain_of(evaluation, self._objective), error if math.isfinite(error) else 0.0))
        self._numbers.append(candidate.id)
        self._points.append(self._coordinates.point(candidate.genome)[0])

    def _fit(self) -> GaussianProcess:
        """The process as of now; asked again before more is told, the same."""
        from evomerge.strategies.bases.gaussian_process import GaussianProcess  # scipy's share of a start is not small

        count = len(self._told)
        if self._fitted is None or self._fitted_at != count:
            begun = self._start if self._fitted_at == count else self._theta  # after loading the same is fitted again
            numbers, points = self._numbers[-MEMORY:], np.array(self._points[-MEMORY:])
            told = np.array(self._told[-MEMORY:])
            for row, estimate in zip(told, self._revised(numbers), strict=True):
                if estimate is not None and np.isfinite([row[0], estimate.value, estimate.error]).all():
                    row[:] = self._objective.gain(estimate.value), estimate.error
            gains, errors = told.T
            gains = np.where(np.isfinite(gains), gains, np.nanmin(np.array(self._told)[:, 0]))
            self._fitted = GaussianProcess.fit(points, gains, errors, begun)
            self._start, self._theta, self._fitted_at = begun, self._fitted.theta, count
        return self._fitted

    def _starts(self, fitted: GaussianProcess) -> list[Array]:
        """Where to climb from: the two that are best by the fit, and the mean of eight; others come to the same."""
        points = fitted.points
        best = np.argsort(-fitted.predict(points)[0], kind="stable")
        return [points[best[0]], points[best[1]], points[best[:8]].mean(axis=0)]

    def _round(self) -> list[Array]:
        if not self._rounds:
            _LOG.info("from here on candidates are proposed by a Gaussian process of the %d known", len(self._told))
        rng = np.random.default_rng([self._seed, 4, self._rounds])
        fitted = self._fit()
        self._rounds += 1
        starts = self._starts(fitted)
        found: list[Array] = []
        others = list(self._flight.state()["points"])
        for place in range(self._batch):
            point = fitted.best(starts if place == 0 else starts[:1], KAPPAS[place % len(KAPPAS)])
            if any(float(np.abs(point - other).max()) < _APART for other in [*others, *found]):
                point = np.clip(point + _AWAY * rng.standard_normal(len(point)), 0.0, 1.0)
            found.append(point)
        return found


def check_refine(after: object, batch: object) -> None:
    """Refuse what is no number of candidates."""
    for name, value, least in (("after", after, 1), ("batch", batch, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 10**9:
            raise ConfigError(f"search.refine.{name} is {value!r}", f"a whole number of candidates, at least {least}")


def check_genes(spec: object) -> None:
    """Refuse genes that a Gaussian process has no distance for."""
    genes = spec.genes if type(spec) is GenomeSpec else ()
    other = next((gene for gene in genes if gene.kind not in ("continuous", "integer")), None)
    if not genes or other is not None:
        what = f"gene {other.name!r} is {other.kind}" if other is not None else "the search space has no genes by name"
        raise ConfigError(f"{KEY} is set, and {what}", "genes that are numbers", f"set {KEY}=null")

"""MAP: a quadratic for every objective, fitted to samples, and the front read off it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
from scipy.optimize import minimize
from scipy.stats.qmc import Sobol

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Proposal
from evomerge.strategies.bases.angle_bins import MOST_BINNED, AngleBins
from evomerge.strategies.bases.capabilities import check_range, require
from evomerge.strategies.bases.front_search import front_of, most_volume_first
from evomerge.strategies.bases.quadratic import LINKS, Array, Link, Quadratic, coefficients, usual_samples
from evomerge.strategies.bases.saving import InFlight, check_settings, settings_of
from evomerge.strategies.variation.coordinates import Coordinates

MOST_GENES = 60
"""Free genes: a full quadratic of more has thousands of coefficients, each of which a sample must pay for."""

SAMPLINGS = ("sobol", "bayesian")
ROUNDS = 4
"""Of Bayesian sampling: how often the bins are scored anew."""

_NO_CHOICES = np.empty(0, dtype=np.int64)
_APART = 0.02  # of the diagonal: nearer points are no other candidates
_TRIES = 64
_AHEAD = 4  # rounds that a front is kept for: more candidates may be in flight than are verified in one
_SAMPLE, _CLIMBS = 10, 4  # one objective: 2^10 points of its fit, climbs from the best of them
_MOST = 1e100  # of a score: the squares of larger ones are no numbers


class AmortizedPareto:
    """Samples, fits, reads the Pareto front off the fit and verifies its points; implements `protocols.Strategy`.

    Li et al., "MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation"
    (arXiv 2406.07529). First `samples` points of a scrambled Sobol sequence, the start before them, are evaluated;
    then a full quadratic within a link is fitted to each objective (`Quadratic`), NSGA-III searches the fits within
    the genes' bounds, which are those of the samples, and the points of its front are proposed, those first that are
    told to add the most hypervolume to all that was proposed before. After `verify` of them the fits learn from what
    they scored, and the front is read anew. With one objective it is a response surface: the highest points of the fit
    are proposed.

    The paper's code searches from -3 to 3 what was sampled from 0 to 1: here nothing is proposed where no sample was.

    Args:
        spec: the genes, numbers only, at most `MOST_GENES` free ones.
        objectives: one or more.
        seed: of the samples and of NSGA-III.
        samples: before the first fit; ``None`` for twice the coefficients, ``(n + 1)(n + 2)`` for n free genes, and at
            least 12.
        verify: how many points of a front are evaluated before it is read anew, and how many ``ask(None)`` proposes.
        link: ``auto``, ``identity``, ``sigmoid`` or ``softplus``; ``auto`` takes a sigmoid for scores that are all in 0
            to 1 and a softplus for others that are never negative.
        popsize, generations: of NSGA-III on the fits.
        sampling: ``sobol``, or ``bayesian`` for the paper's variant: the second half of the samples is drawn, in
            rounds, where fits to those told miss most (`AngleBins`); for at most `MOST_BINNED` genes.

    Raises:
        ConfigError: genes or objectives that it does not handle, or arguments out of range.
    """

    asynchronous: ClassVar[bool] = True
    multi_objective: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset({"continuous", "integer"})

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        samples: int | None = None,
        verify: int = 16,
        link: str = "auto",
        popsize: int = 100,
        generations: int = 25,
        sampling: str = "sobol",
    ) -> None:
        require(type(self), "MAP", spec, objectives, seed)
        self._coordinates = Coordinates(spec)
        genes = len(self._coordinates.start)
        if genes > MOST_GENES:
            raise ConfigError(
                f"strategy MAP was given {genes} free genes",
                f"at most {MOST_GENES}: a quadratic of {genes} genes has {coefficients(genes):,} coefficients",
                "give layers genes in common (search_space.layer_groups), or choose another strategy",
            )
        least = coefficients(genes)
        if samples is not None and samples < least:
            raise ConfigError(
                f"strategy.samples is {samples}",
                f"at least {least}: a quadratic of {genes} free genes has so many coefficients",
                "null takes twice as many",
            )
        for key, value in (("verify", verify), ("generations", generations)):
            check_range(key, value, 1, math.inf)
        check_range("popsize", popsize, 4, math.inf)
        if link not in ("auto", *LINKS):
            raise ConfigError(f"strategy.link is {link!r}", nearest(link, ("auto", *LINKS)))
        if sampling not in SAMPLINGS:
            raise ConfigError(f"strategy.sampling is {sampling!r}", nearest(sampling, SAMPLINGS))
        if sampling == "bayesian" and genes > MOST_BINNED:
            raise ConfigError(
                f"strategy.sampling is bayesian with {genes} free genes",
                f"at most {MOST_BINNED}: directions are binned by {genes - 1} angles",
                "strategy.sampling=sobol, or genes in common (search_space.layer_groups)",
            )
        self._samples = usual_samples(genes) if samples is None else samples
        self._sobols = self._samples if sampling == "sobol" else max(self._samples // 2, least)
        self._verify, self._link, self._popsize, self._generations = verify, link, popsize, generations
        self._spec, self._objectives, self._seed = spec, tuple(objectives), seed
        self._settings = settings_of(
            spec, objectives, samples=self._samples, verify=verify, link=link, popsize=popsize, generations=generations
        )
        if sampling != "sobol":  # states of before there was a choice say nothing
            self._settings["sampling"] = sampling
        self._bins, self._chances = AngleBins(genes), np.empty(0)
        self._points: list[Array] = []
        self._values: list[list[float]] = []
        self._seen: dict[Genome, None] = {}
        self._flight = InFlight(self._coordinates)
        self._asked = self._drawn = 0
        self._queue: list[Array] = []
        self._read_at = 0  # how many had been told when the front was read
        self._binned_at = 0  # how many had been told when the bins were last scored
        self._sobol = self._sequence(0)

    def ask(self, n: int | None = None) -> list[Proposal]:
        """`n` proposals, or as many as a round verifies."""
        return [Proposal(self._propose()) for _ in range(self._verify if n is None else max(n, 0))]

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Keep the scores of a proposal; what failed, and what was not proposed, teaches nothing."""
        row = self._flight.first(candidate.genome)
        if row is None:
            return
        self._flight.take(candidate.genome)
        self._learn(row[0], evaluation)

    def inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Fit to a candidate that was not proposed, too."""
        if candidate.genome is not None:
            self._seen[candidate.genome] = None
            self._learn(self._coordinates.point(candidate.genome)[0], evaluation)

    def state_dict(self) -> dict[str, Any]:
        """All that was told, what is in flight, and what is left of the front."""
        genes, objectives = len(self._coordinates.start), len(self._objectives)
        return {
            "settings": self._settings,
            "seed": self._seed,
            "points": np.array(self._points, dtype=np.float64).reshape(-1, genes),
            "values": np.array(self._values, dtype=np.float64).reshape(-1, objectives),
            "seen": np.array([g.values for g in self._seen], dtype=np.float64).reshape(-1, len(self._spec)),
            "queue": np.array(self._queue, dtype=np.float64).reshape(-1, genes),
            "flight": self._flight.state(),
            "counts": [self._asked, self._drawn, self._read_at, self._binned_at],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken."""
        check_settings("MAP", self._settings, state["settings"])
        self._seed = int(state["seed"])
        self._points, self._queue = list(np.array(state["points"])), list(np.array(state["queue"]))
        self._values = np.asarray(state["values"], dtype=np.float64).tolist()
        self._seen = dict.fromkeys(self._spec.genome(row.tolist()) for row in np.array(state["seen"]))
        self._flight.load(state["flight"])
        counts = [*map(int, state["counts"]), 0]  # states of before the bins have three
        self._asked, self._drawn, self._read_at, self._binned_at = counts[:4]
        self._chances = self._scored() if self._binned_at else np.empty(0)
        self._sobol = self._sequence(self._drawn)

    def fits(self) -> dict[str, Quadratic]:
        """A fit to each objective, of all that was told; empty while that is less than there are coefficients."""
        if len(self._points) < coefficients(len(self._coordinates.start)):
            return {}
        points, values = np.array(self._points), np.array(self._values)
        link = cast(Link, self._link)
        return {o.name: Quadratic.fit(points, values[:, k], link) for k, o in enumerate(self._objectives)}

    def _learn(self, point: Array, evaluation: Evaluation) -> None:
        values = [evaluation.objectives.get(o.name, math.nan) for o in self._objectives]
        if evaluation.status == "ok" and np.less(np.abs(values), _MOST).all():
            self._points.append(point)
            self._values.append(values)

    def _propose(self) -> Genome:
        self._asked += 1
        point = self._coordinates.start if self._asked == 1 else None
        if point is None or self._coordinates.genome(point, _NO_CHOICES) in self._seen:
            point = self._next_of_front() if self._asked > self._samples else None
        if point is None:
            point = self._where_missed() if self._sobols < self._asked <= self._samples else None
        if point is None:
            point = self._sample()
        genome = self._flight.add(point, _NO_CHOICES, self._asked)
        self._seen[genome] = None
        return genome

    def _sequence(self, drawn: int) -> Sobol:
        sobol = Sobol(len(self._coordinates.start), rng=np.random.default_rng(self._seed))
        return sobol.fast_forward(drawn) if drawn else sobol

    def _sample(self) -> Array:
        """The next point of the sequence that is a new genome; on a small grid, in the end, any."""
        for _ in range(_TRIES):
            self._drawn += 1
            point = np.asarray(self._sobol.random(1)[0])
            if self._coordinates.genome(point, _NO_CHOICES) not in self._seen:
                break
        return point

    def _where_missed(self) -> Array | None:
        """A sample from where the fits miss most, and a new genome; ``None`` while too little is known for fits."""
        told = len(self._points)
        if told < coefficients(len(self._coordinates.start)):
            return None
        if not self._binned_at or told - self._binned_at >= (self._samples - self._sobols) / ROUNDS:
            self._binned_at = told
            self._chances = self._scored()
        rng = np.random.default_rng([self._seed, self._asked, 1])
        for _ in range(_TRIES):
            point = self._bins.draw(self._chances, rng)
            if self._coordinates.genome(point, _NO_CHOICES) not in self._seen:
                return point
        return None

    def _scored(self) -> Array:
        points, values = np.array(self._points[: self._binned_at]), np.array(self._values[: self._binned_at])
        return self._bins.chances(points, values, cast(Link, self._link))

    def _next_of_front(self) -> Array | None:
        """The next point of the front that is a new genome; ``None`` where there is no front, or nothing left of it."""
        told = len(self._points)
        if told - self._read_at >= self._verify or not self._read_at:
            self._queue = self._front()
            self._read_at = told if self._queue else 0
        while self._queue:
            point = self._queue.pop(0)
            if self._coordinates.genome(point, _NO_CHOICES) not in self._seen:
                return point
        return None

    def _front(self) -> list[Array]:
        """Points that the fits call best, those to be verified first at the front."""
        fits = self.fits()
        if not fits:
            return []
        if len(fits) == 1:
            (fit,), gain = fits.values(), self._objectives[0].gain(1.0)
            return self._highest(lambda points: gain * fit.predict(points))
        signs = np.array([o.gain(1.0) for o in self._objectives])

        def gains(points: Array) -> Array:
            return signs * np.column_stack([fit.predict(points) for fit in fits.values()])

        known = np.vstack([np.array(self._points), self._flight.state()["points"]])
        points, found = front_of(
            gains,
            known,
            self._coordinates,
            popsize=self._popsize,
            generations=self._generations,
            rng=np.random.default_rng([self._seed, len(self._points), 2]),
        )
        return [points[i] for i in most_volume_first(found, gains(known), _AHEAD * self._verify)]

    def _highest(self, height: Callable[[Array], Array]) -> list[Array]:
        """Where one fit is highest, climbed from the best of a Sobol sample, and the next best of that sample."""
        sobol = Sobol(len(self._coordinates.start), rng=np.random.default_rng(self._seed + len(self._points)))
        points = np.vstack([sobol.random_base2(_SAMPLE), np.array(self._points)])
        points = points[np.argsort(-height(points), kind="stable")]
        box = [(0.0, 1.0)] * points.shape[1]
        climbs = [minimize(lambda x: -float(height(x[None])[0]), start, bounds=box).x for start in points[:_CLIMBS]]
        tops = np.array(climbs)
        return _spread_out(np.vstack([tops[np.argsort(-height(tops), kind="stable")], points]), self._verify)


def _spread_out(points: Array, count: int) -> list[Array]:
    """The first so many points of which none is near an earlier one."""
    kept: list[Array] = []
    least = _APART * math.sqrt(points.shape[1])
    for point in points:
        if all(np.linalg.norm(point - other) >= least for other in kept):
            kept.append(point)
        if len(kept) == count:
            break
    return kept

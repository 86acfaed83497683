"""How busy a cluster's workers are: the real search and strategies, simulated workers and a virtual clock.

    python scripts/simulate_cluster.py --workers 8 64 1000 --strategy random ga m2n2 cma_es

Evaluation times are log-normal with a heavy tail. What the search itself takes (strategy, ledger, decoding) is measured
and added to the virtual clock, during which no worker is given work. The share of busy time is taken until the last
candidate was handed out, as a longer search would go on, and for the whole run with its end.

    python scripts/simulate_cluster.py --workers 12 --strategy cma_es --landscape FILE --seeds 10

With a landscape (`evomerge export --format landscape`) genomes of its genes are scored on it, with its noise, and the
table says what the best candidate of so many evaluations is expected to score there, mean of the seeds.

Ordered rows give every worker a candidate of each generation (`popsize` or `batch`). Rows of evaluations told as they
arrive are of strategies that need not wait, CMA-ES with a generation as large as the cluster; the others refuse it.
"""

from __future__ import annotations

import argparse
import heapq
import inspect
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.config.construct import TARGET, build, locate
from evomerge.config.groups import can_be_asynchronous, takes_asynchronous
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Strategy
from evomerge.recipes.recipe import Recipe
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger
from evomerge.search.incumbent import Incumbent
from evomerge.search.loop import Search
from evomerge.search.phases import Phase
from evomerge.session.builders import without_prior
from fitness.surrogate import SurrogateFitness
from search_spaces.landscape import LandscapeSpace

OBJECTIVES = (Objective("score"),)
Scored = Callable[[Genome], tuple[float, np.ndarray]]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}


class Weights:
    """Continuous genes and no recipes: genomes are what is scored."""

    def __init__(self, genes: int, resolution: float | None = None) -> None:
        self.spec = GenomeSpec(tuple(Gene(f"layers.{i}/weight", resolution=resolution) for i in range(genes)))

    def decode(self, genome: Genome) -> Recipe:
        """There is none."""
        return None  # type: ignore[return-value]  # as for raw weights


def score(genome: Genome) -> tuple[float, np.ndarray]:
    """A sphere, and sixteen items that are right or wrong."""
    values = np.array(genome.values, dtype=np.float64)
    value = 1.0 - float(np.mean((values - 0.7) ** 2))
    return value, (value > np.linspace(0.3, 1.0, 16)).astype(np.float64)


class SimulatedEvaluator:
    """Workers on a virtual clock; implements `protocols.Evaluator`.

    Args:
        score: of a genome, its value and its items.
        slots: workers.
        seconds: mean of an evaluation, in virtual seconds.
        spread: sigma of the logarithm: 1 makes the slowest of a thousand 14 times as long as the mean.
        seed: of the times.
        clock: measures what the search takes between two calls, in seconds.

    Attributes:
        now: the virtual time.
        busy: virtual seconds of all workers together.
        last_start: when the last candidate was handed to a worker, and `busy_then` what had been used by then.
        own: real seconds that the search took between its calls.
    """

    def __init__(
        self, score: Scored, slots: int, seconds: float, spread: float, seed: int, clock: Callable[[], float]
    ) -> None:
        self.slots, self._score = slots, score
        self._clock = clock
        self._mean, self._spread = seconds, spread
        self._rng = np.random.default_rng(seed)
        self._idle = slots
        self._queue: deque[tuple[Candidate, Split]] = deque()
        self._running: list[tuple[float, int, Candidate, Split]] = []
        self._starts: list[tuple[float, float]] = []
        self.now = 0.0
        self.own = 0.0
        self._left = self._clock()

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        """Start at once when a worker is idle."""
        self._tick()
        self._queue.append((candidate, split))
        self._dispatch()
        self._left = self._clock()

    def collect(self) -> Evaluation:
        """Go on to the next evaluation that ends."""
        self._tick()
        end, _, candidate, split = heapq.heappop(self._running)
        # Between two calls workers end and take what is queued: at the time of the end, not of this call.
        self._idle += 1
        self._dispatch(end)
        self.now = max(self.now, end)
        assert candidate.genome is not None
        value, items = self._score(candidate.genome)
        self._left = self._clock()
        return Evaluation(candidate.id, "ok", split, {"score": value}, {"t/acc": value}, {"t/acc": items})

    def busy(self, until: float) -> float:
        """The share of the workers' time that was spent on evaluations until a time."""
        used = sum(min(start + length, until) - start for start, length in self._starts if start < until)
        return used / (self.slots * until)

    @property
    def last_start(self) -> float:
        """When the last candidate was started."""
        return max(start for start, _ in self._starts)

    def fingerprint(self, split: Split) -> str:
        """Nothing is pinned."""
        return "sha256:simulated"

    def close(self) -> None:
        """Nothing is held."""

    def _tick(self) -> None:
        spent = self._clock() - self._left
        self.own += spent
        self.now += spent

    def _dispatch(self, at: float | None = None) -> None:
        while self._idle and self._queue:
            candidate, split = self._queue.popleft()
            self._idle -= 1
            length = self._mean * float(np.exp(self._rng.normal(-(self._spread**2) / 2, self._spread)))
            start = self.now if at is None else at
            self._starts.append((start, length))
            heapq.heappush(self._running, (start + length, candidate.id, candidate, split))


def simulate(
    node: dict[str, Any],
    workers: int,
    evaluations: int,
    *,
    ordered: bool,
    options: argparse.Namespace,
    space: Any = None,
    scored: Scored = score,
) -> tuple[SimulatedEvaluator, Incumbent]:
    """Search; the evaluator and the best candidate in the end."""
    space = Weights(options.genes) if space is None else space
    node, _ = without_prior(node, "strategy")
    strategy: Strategy = build(node, "strategy", space.spec, OBJECTIVES, seed=options.seed)
    clock = CLOCKS[options.clock]
    evaluator = SimulatedEvaluator(scored, workers, options.seconds, options.spread, options.seed, clock)
    incumbent = Incumbent(OBJECTIVES)
    with (
        tempfile.TemporaryDirectory() as folder,
        Ledger(RunFolder.create(Path(folder) / "run"), sync="interval") as log,
    ):
        Search(
            pool=None,
            phases=[Phase.of(space, strategy, evaluations)],
            evaluator=evaluator,
            incumbent=incumbent,
            ledger=log,
            keep=lambda incumbent: None,
            held_out=False,
            ordered=ordered,
        ).run()
    return evaluator, incumbent


def on_landscape(node: dict[str, Any], workers: int, *, ordered: bool, options: argparse.Namespace) -> list[float]:
    """By seed what the best candidate by its drawn score is expected to score on the landscape."""
    found = []
    for seed in range(options.seeds):
        options.seed = seed
        drawn = SurrogateFitness(file=options.landscape, seed=seed)
        expected = SurrogateFitness(file=options.landscape, noise=False)
        name = drawn.objectives[0].name

        def scored(genome: Genome, drawn: Any = drawn, name: str = name) -> tuple[float, np.ndarray]:
            return drawn.objectives[0].gain(drawn.score_genome(genome).objectives[name]), np.zeros(0)

        space = LandscapeSpace(None, {}, file=options.landscape)
        _, best = simulate(
            node, workers, options.evaluations, ordered=ordered, options=options, space=space, scored=scored
        )
        assert best.best is not None
        assert best.best.genome is not None
        found.append(expected.score_genome(best.best.genome).objectives[name])
    return found


def cost(node: dict[str, Any], evaluations: int, options: Any) -> list[tuple[int, float]]:
    """What one ask and one tell take as a search grows, without all that is around them.

    Returns:
        Evaluations told, and microseconds for each of the last tenth of them: at every power of ten, and in the end.
    """
    node, _ = without_prior(node, "strategy")
    brute = node[TARGET].endswith("BruteForce")
    strategy: Strategy = build(
        node, "strategy", Weights(options.genes, 0.05 if brute else None).spec, OBJECTIVES, seed=0
    )
    clock = CLOCKS[options.clock]
    found: list[tuple[int, float]] = []
    spent: list[float] = []
    start = clock()
    while len(spent) < evaluations and clock() - start < options.limit:
        before = clock()
        proposals = strategy.ask(None)
        asked = (clock() - before) / len(proposals)
        for proposal in proposals:
            number = len(spent)
            value, items = score(proposal.genome)
            candidate = Candidate(number, None, proposal.genome, proposal.parents)
            evaluation = Evaluation(number, "ok", "search", {"score": value}, {}, {"t/acc": items})
            before = clock()
            strategy.tell(candidate, evaluation)
            spent.append(asked + clock() - before)
            if len(spent) in (100, 1_000, 10_000):
                found.append((len(spent), 1e6 * float(np.mean(spent[-len(spent) // 10 :]))))
    return [*found, (len(spent), 1e6 * float(np.mean(spent[-len(spent) // 10 :])))]


def main() -> None:
    """Print a line for every strategy and number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", nargs="*", type=int, default=[8, 64, 256, 1000])
    parser.add_argument("--strategy", nargs="+", default=["random"], help="choices of the group strategy")
    parser.add_argument("--each", type=int, default=20, help="evaluations for each worker")
    parser.add_argument("--genes", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0, help="mean of an evaluation")
    parser.add_argument("--spread", type=float, default=1.0, help="sigma of the logarithm of an evaluation's time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", type=int, default=0, help="also the cost of ask and tell after this many evaluations")
    parser.add_argument("--limit", type=float, default=60.0, help="real seconds for --cost, for each strategy")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="of the search's own time")
    parser.add_argument("--landscape", help="a file of evomerge export --format landscape, to be searched")
    parser.add_argument("--evaluations", type=int, default=300, help="of a search on the landscape")
    parser.add_argument("--seeds", type=int, default=10, help="searches of each kind on the landscape")
    options = parser.parse_args()
    from evomerge import conf_dir
    from evomerge.config.groups import strategy_node

    if options.landscape:
        for name in options.strategy:
            for workers in options.workers:
                for label, node, ordered in modes(strategy_node(conf_dir(), name), workers):
                    scores = on_landscape(node, workers, ordered=ordered, options=options)
                    mean, error = statistics.mean(scores), statistics.stdev(scores) / len(scores) ** 0.5
                    print(f"{name:16s} {workers:8d}  {label:16s}  {mean:.4f} +- {error:.4f}", flush=True)
        return
    print("strategy          workers  evaluations  told                busy  busy with end  ms of search for each")
    for name in options.strategy:
        node = strategy_node(conf_dir(), name)
        for workers in options.workers:
            evaluations = workers * options.each
            for label, wanted, ordered in modes(node, workers):
                found, _ = simulate(wanted, workers, evaluations, ordered=ordered, options=options)
                busy, whole = found.busy(found.last_start), found.busy(found.now)
                shares = f"{busy:6.1%}  {whole:13.1%}  {1000 * found.own / evaluations:.2f}"
                print(f"{name:16s} {workers:8d}  {evaluations:11d}  {label:16s}  {shares}", flush=True)
        if options.cost:
            told = "  ".join(f"{count:,}: {micros:.0f}" for count, micros in cost(node, options.cost, options))
            print(f"{name:16s} microseconds of ask and tell by evaluations told: {told}", flush=True)


def modes(node: dict[str, Any], workers: int) -> list[tuple[str, dict[str, Any], bool]]:
    """How a strategy is run: a label, its node, and whether in order."""
    target = locate(node[TARGET], "strategy")
    size = next((key for key in ("batch", "popsize") if key in inspect.signature(target).parameters), None)
    found = [("by generations", {**node, size: workers} if size else node, True)]
    if can_be_asynchronous(target):
        told = {"asynchronous": True, "popsize": workers} if takes_asynchronous(target) else {}
        found.append(("as they arrive", {**node, **told}, False))
    return found


if __name__ == "__main__":
    main()

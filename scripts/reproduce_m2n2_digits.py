"""The first experiment of M2N2 (arXiv 2508.16204, section 4.1): methods compared on the weights of a digit classifier.

Every method runs with the strategy classes and the experiment files that `evomerge search` uses, without a ledger:

    python scripts/reproduce_m2n2_digits.py run --folder results --runs 10
    python scripts/reproduce_m2n2_digits.py table --folder results
    python scripts/reproduce_m2n2_digits.py figure --folder results --figure docs/m2n2_digits.svg
    python scripts/reproduce_m2n2_digits.py speed

`run` writes one JSON file per method and run, skips those that are there, and so goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from threadpoolctl import ThreadpoolController

from evomerge.candidate import Candidate
from evomerge.config.compose import compose_config
from evomerge.genomes.arrays import ArraySpec, numbers
from evomerge.protocols import Strategy
from evomerge.search.in_flight import PendingEvaluations
from evomerge.session.parts import build_parts
from evomerge.strategies.variation.crossover import Cut, child_of
from evomerge.utils.files import write_text_atomic
from fitness.digits import DigitsFitness

console = Console()


@dataclass(frozen=True)
class Method:
    """One curve.

    Attributes:
        start: ``scratch`` or ``pretrained``.
        name: of its files.
        title: in tables and figures.
        published: test accuracy in percent at the end of the paper's curve, read off the public figure (± 0.2).
        experiment: of `evomerge search`; brute force is no strategy and takes the seeds and the budget from it.
        overrides: of the experiment.
    """

    start: str
    name: str
    title: str
    published: float
    experiment: str
    overrides: tuple[str, ...] = ()


_SCRATCH, _PRETRAINED = "m2n2_digits", "m2n2_digits_pretrained"
_GA = ("strategy.alpha=0", "strategy.attraction=off")
_NO_CROSSOVER = "strategy.crossover=false"
METHODS = (
    Method("scratch", "m2n2", "M2N2", 87.2, _SCRATCH),
    Method("scratch", "cma_es", "CMA-ES (separable)", 86.0, "m2n2_digits_cma_es"),
    Method("scratch", "m2n2_no_crossover", "M2N2 without crossover", 77.1, _SCRATCH, (_NO_CROSSOVER,)),
    Method("scratch", "ga_no_crossover", "GA without crossover", 71.4, _SCRATCH, (*_GA, _NO_CROSSOVER)),
    Method("scratch", "ga", "GA", 68.4, _SCRATCH, _GA),
    Method("scratch", "map_elites", "MAP-Elites", 60.2, "m2n2_digits_map_elites"),
    Method("pretrained", "m2n2", "M2N2", 68.4, _PRETRAINED),
    Method("pretrained", "m2n2_no_attraction", "M2N2 without attraction", 66.3, _PRETRAINED, _GA[1:]),
    Method("pretrained", "map_elites", "MAP-Elites", 62.3, "m2n2_digits_pretrained_map_elites"),
    Method("pretrained", "m2n2_no_split", "M2N2 without split point", 57.8, _PRETRAINED, ("strategy.split=false",)),
    Method("pretrained", "brute_force", "Brute force", 57.8, _PRETRAINED),
    Method("pretrained", "ga", "GA", 52.1, _PRETRAINED, _GA),
)


@dataclass
class Curve:
    """What one run found.

    Attributes:
        passes: forward passes over the training images at every point, the seeds' two included.
        train, test: accuracies of the network that was best on the training images so far, the first of equals.
        seconds: of the whole run.
    """

    method: str
    start: str
    seed: int
    passes: list[int]
    train: list[float]
    test: list[float]
    seconds: float


def play(
    method: Method, seed: int, passes: int | None = None, every: int = 500, pause: Callable[[], None] = lambda: None
) -> Curve:
    """Run one method once.

    Args:
        method: which.
        seed: of the search, and from scratch of the first networks.
        passes: budget; the experiment's for ``None``.
        every: how often the best network so far is tested, in passes.
        pause: called as often; may block.
    """
    config = compose_config([f"experiment={method.experiment}", *method.overrides, f"search.seed={seed}"])
    parts = build_parts(config)
    test = DigitsFitness(part="test")
    budget = passes or config.search.evaluations
    curve = Curve(method.name, method.start, seed, [], [], [], 0.0)
    started = time.perf_counter()
    best, best_weights = -math.inf, None
    spec = parts.space.spec
    assert isinstance(spec, ArraySpec)
    scored = _line(spec, budget) if method.name == "brute_force" else _search(parts.strategy, parts.evaluator)
    for done, (weights, accuracy) in enumerate(scored, start=1):
        if accuracy > best:
            best, best_weights = accuracy, weights
        if done % every == 0 or done == budget:
            assert best_weights is not None
            curve.passes.append(done)
            curve.train.append(best)
            curve.test.append(test.score(best_weights).objectives["accuracy"])
            pause()
        if done == budget:
            break
    curve.seconds = time.perf_counter() - started
    return curve


def _search(strategy: Strategy, evaluator: Any) -> Iterator[tuple[NDArray[np.float32], float]]:
    """The weights and the training accuracy of every candidate, for as long as the strategy proposes any."""
    number = 0
    while proposals := strategy.ask():
        for proposal in proposals:
            candidate = Candidate(number, None, proposal.genome, proposal.parents)
            evaluator.submit(candidate)
            evaluation = evaluator.collect()
            strategy.tell(candidate, evaluation)
            number += 1
            yield numbers(proposal.genome).astype(np.float32, copy=False), evaluation.objectives["accuracy"]


def _line(spec: ArraySpec, points: int) -> Iterator[tuple[NDArray[np.float32], float]]:
    """The same for points of the arc between two seeds, at equal distances."""
    first, second = (seed.array for seed in spec.seeds)
    fitness = DigitsFitness()
    for mix in np.linspace(0, 1, points):
        weights = child_of(first, second, [Cut(0, len(spec), len(spec), float(mix))], angle="whole")
        yield weights, fitness.score(weights).objectives["accuracy"]


def path_of(folder: Path, method: Method, seed: int) -> Path:
    """Where a run's curve lies."""
    return folder / f"{method.start}-{method.name}-{seed}.json"


def run_all(folder: Path, methods: Sequence[Method], runs: int, passes: int | None, pause: Callable[[], None]) -> None:
    """Every method's first run, then every method's second, and so on; runs that are there are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(runs):
        for method in methods:
            path = path_of(folder, method, seed)
            if path.exists() or (method.name == "brute_force" and seed):  # which has no chance in it
                continue
            curve = play(method, seed, passes, pause=pause)
            write_text_atomic(path, json.dumps(asdict(curve)) + "\n")
            console.print(f"{path.name}: test {curve.test[-1]:.3f}, {curve.seconds:.0f} s")


def curves_of(folder: Path, method: Method) -> list[Curve]:
    """All runs of a method that are there."""
    found = sorted(folder.glob(f"{method.start}-{method.name}-*.json"), key=lambda p: int(p.stem.rpartition("-")[2]))
    return [Curve(**json.loads(path.read_text())) for path in found]


def statistics_of(curves: Sequence[Curve]) -> tuple[float, float]:
    """Mean and standard error (of the mean, n - 1) of the last test accuracies, in percent."""
    last = 100 * np.array([curve.test[-1] for curve in curves])
    return float(last.mean()), float(last.std(ddof=1) / math.sqrt(len(last))) if len(last) > 1 else math.nan


def table(folder: Path) -> str:
    """A Markdown table of what was found, beside the published numbers."""
    lines = ["| start | method | published | here | standard error | runs |", "|---|---|---|---|---|---|"]
    for method in METHODS:
        curves = curves_of(folder, method)
        if curves:
            mean, error = statistics_of(curves)
            shown = "–" if math.isnan(error) else f"{error:.1f}"
            cells = (method.start, method.title, f"{method.published:.1f}", f"{mean:.1f}", shown, str(len(curves)))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_csv(folder: Path) -> Path:
    """Means and standard errors at every point of every curve, in one file."""
    lines = ["start,method,passes,test_mean,test_standard_error,train_mean,runs"]
    for method in METHODS:
        curves = curves_of(folder, method)
        if not curves:
            continue
        points = min(len(curve.passes) for curve in curves)
        test = np.array([curve.test[:points] for curve in curves])
        train = np.array([curve.train[:points] for curve in curves]).mean(axis=0)
        error = test.std(axis=0, ddof=1) / math.sqrt(len(test)) if len(test) > 1 else np.full(points, np.nan)
        for passes, mean, wide, fit in zip(curves[0].passes, test.mean(axis=0), error, train, strict=False):
            row = (method.start, method.name, passes, f"{mean:.5f}", f"{wide:.5f}", f"{fit:.5f}", len(curves))
            lines.append(",".join(map(str, row)))
    path = folder / "curves.csv"
    write_text_atomic(path, "\n".join(lines) + "\n")
    return path


def figure(folder: Path, path: Path) -> None:
    """Draw the curves with their standard errors; dashes mark where the published ones end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "evomerge"  # the same file for the same curves
    drawing, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=False)
    for axis, start in zip(axes, ("scratch", "pretrained"), strict=True):
        for number, method in enumerate(m for m in METHODS if m.start == start):
            curves = curves_of(folder, method)
            if not curves:
                continue
            points = min(len(curve.passes) for curve in curves)
            test = 100 * np.array([curve.test[:points] for curve in curves])
            x, mean = curves[0].passes[:points], test.mean(axis=0)
            error = test.std(axis=0, ddof=1) / math.sqrt(len(test)) if len(test) > 1 else np.zeros(points)
            axis.plot(x, mean, color=f"C{number}", label=f"{method.title} ({len(curves)})", linewidth=1.2)
            axis.fill_between(x, mean - error, mean + error, color=f"C{number}", alpha=0.2, linewidth=0)
            axis.plot([x[-1]], [method.published], marker="_", markersize=14, color=f"C{number}")
        axis.set(title=f"Digits, {start}", xlabel="forward passes over the training images", ylabel="test accuracy, %")
        axis.legend(fontsize=7)
    drawing.tight_layout()
    drawing.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def speed(blocks: int = 60, passes: int = 100) -> None:
    """Print passes per second of M2N2 and of the forward alone, medians over blocks in turn on the same machine.

    Once one after the other, with as many BLAS threads as there are cores: every child then knows how its elder did, as
    in the paper. And once with a worker on every core and one more candidate in flight.
    """
    fitness = DigitsFitness()
    weights = 0.05 * np.random.default_rng(0).standard_normal(fitness.size, dtype=np.float32)
    cores, blas = len(os.sched_getaffinity(0)), ThreadpoolController()
    threads = ThreadPoolExecutor(cores)

    def forwards(many: int) -> None:
        for _ in range(many):
            fitness.forward(weights)

    def shared() -> None:
        list(threads.map(forwards, [passes // cores] * cores))

    several = (f"evaluator.workers={cores}", f"search.in_flight={cores + 1}")
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "forwards, one after the other": (cores, lambda: forwards(passes)),
        "M2N2, one after the other": (cores, _block(passes)),
        f"forwards, {cores} at once": (1, shared),
        f"M2N2, {cores} at once": (1, _block(passes, *several)),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(blocks):
        for name, (limit, run) in ways.items():
            with blas.limit(limits=limit, user_api="blas"):
                started = time.perf_counter()
                run()
                if number >= blocks // 10:
                    found[name].append(time.perf_counter() - started)
    times = {name: float(np.median(seconds)) / passes for name, seconds in found.items()}
    floor = times["forwards, one after the other"]
    for name, each in times.items():
        console.print(f"{name:30} {1 / each:6,.0f} passes/s ({1e3 * each:.3f} ms), {each / floor:.2f} of the first")


def _block(passes: int, *overrides: str) -> Callable[[], None]:
    """M2N2 for so many passes, from where the last block ended."""
    config = compose_config([f"experiment={METHODS[0].experiment}", *overrides])
    parts = build_parts(config)
    pending, in_flight = PendingEvaluations(parts.evaluator, "search", ordered=True), config.search.in_flight or 1
    numbers = itertools.count()

    def run() -> None:
        begun = 0
        for told in range(passes):
            while begun < passes and begun - told < in_flight:
                (proposal,) = parts.strategy.ask(1)
                pending.submit(Candidate(next(numbers), None, proposal.genome, proposal.parents))
                begun += 1
            parts.strategy.tell(*pending.next_result())

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "table", "figure", "speed"])
    parser.add_argument("--folder", type=Path, default=Path("runs/m2n2_digits"))
    parser.add_argument("--figure", type=Path, default=Path("runs/m2n2_digits/curves.svg"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--passes", type=int, default=None, help="of every run; the experiments' own by default")
    parser.add_argument("--only", nargs="*", default=None, metavar="START/METHOD", help="such as scratch/m2n2")
    options = parser.parse_args(arguments)
    if options.verb == "speed":
        speed()
    elif options.verb == "run":
        chosen = [m for m in METHODS if options.only is None or f"{m.start}/{m.name}" in options.only]
        run_all(options.folder, chosen, options.runs, options.passes, lambda: None)
    elif options.verb == "figure":
        figure(options.folder, options.figure)
    else:
        console.print(table(options.folder), markup=False)
        console.print(f"curves: {write_csv(options.folder)}")


if __name__ == "__main__":
    main()

"""What quantised weights cost in score and save in memory, on the demo and on a model of random weights.

Random candidates of the demo's search space are scored on the search's items in full precision and with weights
quantised to each of the others. Prints two tables in Markdown: scores, a row for each pool and kind of weights; and
the memory of a model, its weights as they lie there and the most that was taken while it was loaded and became a
merge, files that are mapped not counted.

    python scripts/quantised_evaluation.py demo_pool/seed0 demo_pool/seed1 --candidates 100 --size 500M
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

from evomerge.candidate import Candidate
from evomerge.config.compose import compose_config
from evomerge.evaluation.engine_settings import QUANTISE, EngineSettings
from evomerge.evaluation.worker import Worker
from evomerge.merge.execution.notes_memory import load_kernels
from evomerge.merge.execution.sources import Placement
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.codecs import codec_of
from evomerge.merge.resident.model import Resident
from evomerge.merge.resident.resident_memory import tensor_bytes
from evomerge.models.opening import open_pool
from evomerge.recipes.recipe import Recipe
from evomerge.session.builders import check_fitnesses, fitness_from_config, space_from_node
from evomerge.session.pools import pool_from_config
from scripts.benchmark_models import make_pool

FINALISTS = 8
"""What `search.finalists` is by default."""


@dataclass(frozen=True)
class Scored:
    """Scores of all candidates with one kind of weights.

    Attributes:
        scores: the objective, (candidates,).
        right: of every item whether it was answered rightly, (candidates, items).
        nbytes: of the weights.
    """

    scores: np.ndarray
    right: np.ndarray
    nbytes: int


def scored(root: Path, candidates: int, quantise: str | None) -> Scored:
    """Score random candidates, always the same ones, on the items of the search."""
    config = compose_config(["experiment=demo", f"pool.root='{root}'"])
    pool = pool_from_config(config)
    space: Any = space_from_node(config.search_space, "search_space", pool.info)
    fitness = fitness_from_config(config, "fitness")
    check_fitnesses(fitness, pool=pool)
    worker = Worker(pool, {"search": fitness}, device="cpu", threads=1, engine=EngineSettings(quantise=quantise))
    rng, scores, right = np.random.default_rng(0), [], []
    for number in range(candidates):
        recipe: Recipe = space.decode(space.spec.sample(rng))
        found = worker.evaluate(Candidate(number, recipe))
        if not found.ok:
            raise SystemExit(f"candidate {number}: {found.error}")
        scores.append(next(iter(found.objectives.values())))
        right.append(np.concatenate([own for name, own in sorted(found.items.items()) if name.endswith("/acc")]))
    worker.close()
    return Scored(np.array(scores), np.array(right), sum(tensor_bytes(pool, quantise).values()))


def score_rows(root: Path, candidates: int, weights: Sequence[str]) -> Iterator[str]:
    """A row for each kind of weights: what its scores are beside those of full precision."""
    full = scored(root, candidates, None)
    print(f"{root.name}: full precision scored", file=sys.stderr)
    best = full.scores.max()
    for name in weights:
        own = scored(root, candidates, name)
        difference = own.scores - full.scores
        turned = (own.right != full.right).mean()
        order = np.argsort(-own.scores, kind="stable")
        lost = [best - full.scores[order[:count]].max() for count in (1, FINALISTS)]
        yield " | ".join(
            (
                f"| {root.name} | {name}",
                f"{own.nbytes / full.nbytes:.0%}",
                f"{difference.mean():+.4f}",
                f"{np.abs(difference).mean():.4f}",
                f"{np.abs(difference).max():.4f}",
                f"{turned:.2%}",
                f"{spearmanr(own.scores, full.scores)[0]:.4f}",
                f"{kendalltau(own.scores, full.scores)[0]:.4f}",
                f"{lost[0]:.4f}",
                f"{lost[1]:.4f} |",
            )
        )
    spread = np.std(full.scores)
    print(f"{root.name}: scores from {full.scores.min():.3f} to {best:.3f}, deviation {spread:.3f}", file=sys.stderr)


@contextmanager
def anonymous_peak(found: list[int]) -> Iterator[None]:
    """Note the most that this process has of memory that no file is mapped to, looked at every few milliseconds."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.003):
            found.append(anonymous())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def anonymous() -> int:
    """Bytes of this process's memory that no file is mapped to."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def measure(folders: Sequence[str], quantise: str | None) -> str:
    """The weights of a resident model of some sources, and the most that it took, in megabytes."""
    pool = open_pool({Path(folder).name: folder for folder in folders}, base="base")
    load_kernels()
    if quantise is not None:
        codec_of(quantise, torch.device("cpu"))  # its library too
    found = [anonymous()]
    with anonymous_peak(found):
        resident = Resident(pool, placement=Placement(0, 0, 0), cache=0, states=0, quantise=quantise)
        resident.apply(make_plan(pool.info.linear({"base": 0.5, "a": 0.5}), pool))
    weights = sum(parameter.nbytes for parameter in resident.model.module.parameters())
    return f"{weights / 1e6:.0f} | {(max(found) - found[0]) / 1e6:.0f}"


def memory_rows(size: str, dtype: str, weights: Sequence[str]) -> Iterator[str]:
    """A row for each kind of weights, each measured in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        make_pool(Path(scratch), size, dtype, models=2)
        folders = [str(Path(scratch) / name) for name in ("base", "a")]
        for name in ("", *weights):
            command = [sys.executable, __file__, *folders, f"--measure={name}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            yield f"| {size}, {dtype} | {name or 'full precision'} | {done.stdout.strip().splitlines()[-1]} |"


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="*", type=Path, help="folders that make_demo_pool.py wrote")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--weights", nargs="+", choices=QUANTISE, default=QUANTISE, help="what is compared")
    parser.add_argument("--size", choices=("40M", "500M"), help="measure the memory of a model of so many parameters")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of that model")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(measure([str(folder) for folder in options.pools], options.measure or None))
        return 0
    if options.pools:
        heads = "pool | weights | bytes | mean difference | mean of sizes | largest | items turned | Spearman | Kendall"
        print(f"| {heads} | winner | of {FINALISTS} finalists |", "|---|---|" + "---:|" * 9, sep="\n")
        for root in options.pools:
            for row in score_rows(root, options.candidates, options.weights):
                print(row, flush=True)
    if options.size:
        print("| model | weights | MB | most at once, MB |", "|---|---|---:|---:|", sep="\n")
        for row in memory_rows(options.size, options.dtype, options.weights):
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

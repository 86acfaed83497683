"""What a later candidate of a search costs to merge, beside one of task arithmetic.

    python scripts/candidate_cost.py POOL base a b [--candidates 25]

POOL is a folder with one folder for each model, the first that is named is the base. For every method that makes
something of the sources once (`Derived`), all slices are merged with other factors for each candidate and nothing
cached. Processor time on one thread: that of the first candidate, and the median of the others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from evomerge.merge.execution.sources import Placement
from evomerge.merge.methods import METHODS
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.slices import Input, SliceRecipe, parameters

ROOM = 1 << 40  # bytes for notes: all that there is


def candidates(pool: Pool, method: str, names: Sequence[str], base: str, count: int) -> Iterator[Plan]:
    """Plans of one method that differ in ``lambda`` and, where it has them, in weights."""
    weighted = METHODS[method].spec.parameter("weight") is not None
    for turn in range(count):
        shared = parameters({"lambda": 0.3 + 0.02 * turn})
        each = [parameters({"weight": 0.3 + 0.02 * turn + 0.1 * i} if weighted else {}) for i in range(len(names))]
        inputs = tuple(Input(name, None, own) for name, own in zip(names, each, strict=True))
        yield make_plan(
            pool.info.recipe(SliceRecipe(s, method, inputs, shared, Input(base)) for s in pool.info.slices), pool
        )


def measured(pool: Pool, method: str, names: Sequence[str], base: str, count: int) -> tuple[float, float]:
    """Seconds of processor time of the first candidate, and the median of those after the second."""
    resident = Resident(pool, "cpu", placement=Placement(0, 0, ROOM), cache=0)
    taken = []
    for plan in candidates(pool, method, names, base, count):
        start = time.process_time()
        resident.apply(plan)
        taken.append(time.process_time() - start)
    return taken[0], statistics.median(taken[2:])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="what later candidates cost, beside task arithmetic")
    parser.add_argument("pool", type=Path)
    parser.add_argument("base")
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--candidates", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [options.base, *options.sources]
    pool = open_pool({name: str(options.pool / name) for name in names}, base=options.base)
    plain = measured(pool, "task_arithmetic", options.sources, options.base, options.candidates)[1]
    print("| method | the first, over a later one of task arithmetic | a later one, over it |\n| --- | ---: | ---: |")
    for method in (name for name, method in METHODS.items() if method.derived is not None):
        first, later = measured(pool, method, options.sources, options.base, options.candidates)
        print(f"| {method} | {first / plain:.0f} | {later / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()

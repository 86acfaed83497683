"""What a later candidate of a search costs to merge, beside one of task arithmetic.

    python scripts/candidate_cost.py POOL base a b [--candidates 25]

POOL is a folder with one folder for each model, the first that is named is the base. For every method that takes a base
all slices are merged with other numbers for each candidate and nothing cached. Of methods that make something of the
sources once (`Derived`) all factors vary: ``lambda`` and, where what is made does not depend on them, weights. Of the
others everything that a search varies does, and of methods that are in both tables the second says what it costs when
what is made varies. Methods that read statistics of data are left out. Processor time on one thread: that of the first
candidate, and the median of the others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from evomerge.merge.execution.sources import Placement
from evomerge.merge.methods import METHODS, call_values
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.method_spec import ParameterSpec, Scalar
from evomerge.recipes.slices import Input, Parameters, SliceRecipe, parameters

ROOM = 1 << 40  # bytes for notes: all that there is


def candidates(pool: Pool, method: str, names: Sequence[str], base: str, count: int, searched: bool) -> Iterator[Plan]:
    """Plans of one method that differ in factors or, if `searched`, in all that a search varies."""
    spec, made = METHODS[method].spec, METHODS[method].derived
    for turn in range(count):
        step = turn / max(1, count - 1)

        def drawn(own: ParameterSpec, shift: float, step: float = step) -> Scalar:
            value = own.low + (own.high - own.low) * (0.2 + 0.4 * step + shift)
            return round(value) if own.kind == "integer" else value

        def each(apart: float, drawn: Callable[[ParameterSpec, float], Scalar] = drawn) -> list[Parameters]:
            numbers = [p for p in spec.parameters if p.per_input and p.searched and not p.choices]
            given = [p for p in numbers if searched or p.name == "weight"]
            return [parameters({p.name: drawn(p, apart * i / len(names)) for p in given}) for i in range(len(names))]

        shared = [p for p in spec.parameters if not p.per_input and searched and p.searched and not p.choices]
        lambdas = [p for p in spec.parameters if p.name == "lambda"]
        common = parameters({p.name: drawn(p, 0.0) for p in (*shared, *lambdas)})
        if made is not None and not searched and spec.parameter("weight") is not None:
            first, second = (
                made.variant(call_values(spec, [{"weight": w + 0.1 * i} for i in range(len(names))], {}))
                for w in (0.3, 0.5)
            )
            weights = each(0.2 if first == second else 0.0)
        else:
            weights = each(0.2)
        inputs = tuple(Input(name, None, own) for name, own in zip(names, weights, strict=True))
        yield make_plan(
            pool.info.recipe(SliceRecipe(s, method, inputs, common, Input(base)) for s in pool.info.slices), pool
        )


def measured(
    pool: Pool, method: str, names: Sequence[str], base: str, count: int, searched: bool = False
) -> tuple[float, float]:
    """Seconds of processor time of the first candidate, and the median of those after the second."""
    resident = Resident(pool, "cpu", placement=Placement(0, 0, ROOM), cache=0)
    taken = []
    for plan in candidates(pool, method, names, base, count, searched):
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
    made = [name for name, method in METHODS.items() if method.derived is not None]
    changing = [name for name, method in METHODS.items() if method.derived is not None and method.derived.changing]
    others = [
        name
        for name, method in METHODS.items()
        if method.derived is None and method.spec.base != "none" and method.spec.max_inputs is None
        if method.spec.statistics is None  # which a folder of models has none of
        if any(p.searched or p.name == "lambda" for p in method.spec.parameters)
    ]
    for title, methods, searched in (
        ("made once", made, False),
        ("all that is searched", [*changing, *others], True),
    ):
        print(f"| {title} | the first, over a later one of task arithmetic | a later one, over it |")
        print("| --- | ---: | ---: |")
        for name in methods:
            given = options.sources, options.base, options.candidates, searched
            first, later = measured(pool, name, *given)
            print(f"| {name} | {first / plain:.1f} | {later / plain:.2f} |", flush=True)
        print()


if __name__ == "__main__":
    main()

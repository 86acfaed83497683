"""What the loop around evaluations costs: candidates per second with a fitness that costs nothing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.evaluation.local import LocalEvaluator
from evomerge.incumbent import Incumbent
from evomerge.ledger import Ledger, RunFolder
from evomerge.merge.methods import specs
from evomerge.phases import Phase
from evomerge.protocols import Objective
from evomerge.recipe import ModelRef, PoolInfo, SliceId
from evomerge.search import Search
from evomerge.strategies.random_search import RandomSearch
from search_spaces.parameter import ParameterSpace

OBJECTIVES = (Objective("score"),)


class NullWorker:
    """Scores by the first gene, without a model; with per-item scores when `items` is above 0."""

    def __init__(self, items: int) -> None:
        self._items = items

    def evaluate(self, candidate: Candidate, split: Split = "search") -> Evaluation:
        """A score at once."""
        value = 0.0 if candidate.genome is None else float(candidate.genome.values[0])
        items = {"task/acc": np.full(self._items, value)} if self._items else {}
        return Evaluation(candidate.id, "ok", split, {"score": value}, {"task/acc": value}, items)

    def close(self) -> None:
        """Nothing is held."""


def pool_info(layers: int) -> PoolInfo:
    """A pool of a base and two sources with this many layers; there are no files."""
    slices = [SliceId("embed")]
    slices += [SliceId(part, layer) for layer in range(layers) for part in ("attn", "mlp", "norm")]
    refs = tuple((name, ModelRef(name, fingerprint=f"sha256:{name}")) for name in ("base", "math", "lang"))
    slices += [SliceId("final_norm"), SliceId("head")]
    return PoolInfo(refs, ("math", "lang"), "base", tuple(slices), layers, "float32")


def loop(evaluations: int, layers: int, items: int, sync: Literal["every", "interval"], repeats: int) -> None:
    """Print candidates per second of random search over a parameter space of one group for each layer."""
    rates = [_once(evaluations, layers, items, sync) for _ in range(repeats)]
    print(
        f"{evaluations} candidates, {layers} layers, {items} items, ledger sync {sync}: "
        f"{np.median(rates):.0f} candidates/s (median of {repeats}, {min(rates):.0f} to {max(rates):.0f})"
    )


def _once(evaluations: int, layers: int, items: int, sync: Literal["every", "interval"]) -> float:
    info = pool_info(layers)
    space = ParameterSpace(info, specs(), method="task_arithmetic", layer_group="layer", components="all")
    strategy = RandomSearch(space.spec, OBJECTIVES, seed=0)
    worker: Any = NullWorker(items)
    evaluator = LocalEvaluator(lambda **_: worker, cache=0)
    with tempfile.TemporaryDirectory() as folder, Ledger(RunFolder.create(Path(folder) / "run"), sync=sync) as ledger:
        search = Search(
            pool=info,
            phases=[Phase.of(space, strategy, evaluations)],
            evaluator=evaluator,
            incumbent=Incumbent(OBJECTIVES),
            ledger=ledger,
            keep=lambda incumbent: None,
            baselines=False,
            held_out=False,
        )
        start = time.perf_counter()
        search.run()
        return evaluations / (time.perf_counter() - start)


def main(arguments: Sequence[str]) -> None:
    """For profilers: ``python -m cProfile -s cumtime -m scripts.benchmark_loop``."""
    loop(2000, 6, 0, "interval", 1)


if __name__ == "__main__":
    main(())

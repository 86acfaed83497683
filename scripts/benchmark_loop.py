"""What the loop around evaluations costs: candidates per second with a fitness that costs nothing."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.evaluation.local import LocalEvaluator
from evomerge.genomes.genome import Genome
from evomerge.merge.methods import specs
from evomerge.objectives import Objective
from evomerge.protocols import Evaluator
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import ModelRef, SliceId
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger, read_ledger
from evomerge.search.incumbent import Incumbent
from evomerge.search.loop import Search
from evomerge.search.phases import Phase
from evomerge.strategies.random_search import RandomSearch
from search_spaces.parameter import ParameterSpace

Sync = Literal["every", "interval"]
OBJECTIVES = (Objective("score"),)
_IN_FLIGHT = 64


class NullWorker:
    """Scores by the first gene, without a model; with per-item scores when `items` is above 0."""

    def __init__(self, items: int) -> None:
        self._items = items

    def __call__(self, **_: Any) -> Any:
        """Builds itself."""
        return self

    def fitness(self, split: Split) -> NullWorker:
        """Itself."""
        return self

    def fingerprint(self, split: Split = "search") -> str:
        """Always the same."""
        return "sha256:null"

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


def loop(evaluations: int, layers: int, items: int, sync: Sync, repeats: int, evaluator: str = "local") -> None:
    """Print candidates per second of random search over a parameter space of one group for each layer."""
    runs = [_once(evaluations, layers, items, sync, evaluator) for _ in range(repeats)]
    rates = [evaluations / wall for wall, *_ in runs]
    own, other = (min(run[place] for run in runs) / evaluations for place in (1, 2))
    shared = f" and {1e6 * other:.0f} of Ray's processes" if other else ""
    print(
        f"{evaluations} candidates, {layers} layers, {items} items, ledger sync {sync}, evaluator {evaluator}: "
        f"{np.median(rates):.0f} candidates/s (median of {repeats}, {min(rates):.0f} to {max(rates):.0f}); "
        f"{1e6 * own:.0f} microseconds of the search's processor time each{shared}, "
        f"which is {1 / own:.0f}/s" + (f", {1 / (own + other):.0f}/s if all had one core" if other else "")
    )


def ledger(events: int) -> None:
    """Print events per second appended with `interval`, and how long a ledger of so many events takes to open."""
    candidate = Candidate(0, None, Genome(tuple(np.random.default_rng(0).uniform(size=14).tolist())))
    evaluation = Evaluation(0, "ok", "search", {"score": 0.125}, {"task/acc": 0.125}, seconds={"model": 0.25})
    with tempfile.TemporaryDirectory() as folder:
        made = RunFolder.create(Path(folder) / "run")
        start, own = time.perf_counter(), time.process_time()
        with Ledger(made, sync="interval") as log:
            for _ in range(events // 2):
                log.log_asked(candidate)
                log.log_told(evaluation)
        appended, own = time.perf_counter() - start, time.process_time() - own
        start = time.perf_counter()
        with Ledger(made) as log:
            opened, length = time.perf_counter() - start, len(log)
        start = time.perf_counter()
        read = sum(1 for _ in read_ledger(made))
        read_in = time.perf_counter() - start
        megabytes = made.ledger.stat().st_size / 1e6
    assert length == read == events
    print(
        f"ledger of {events} events ({megabytes:.0f} MB): appended at {events / appended:.0f}/s with interval "
        f"({events / own:.0f} per second of processor time), opened in {opened:.1f} s, read in {read_in:.1f} s"
    )


def _once(evaluations: int, layers: int, items: int, sync: Sync, evaluator: str) -> tuple[float, float, float]:
    """Seconds of the loop: of the clock, of this process's processor time, of that of the processes under it."""
    info = pool_info(layers)
    space = ParameterSpace(info, specs(), method="task_arithmetic", layer_group="layer", components="all")
    strategy = RandomSearch(space.spec, OBJECTIVES, seed=0)
    with (
        tempfile.TemporaryDirectory() as folder,
        Ledger(RunFolder.create(Path(folder) / "run"), sync=sync) as ledger,
        closing(_evaluator(evaluator, items)) as workers,
    ):
        search = Search(
            pool=info,
            phases=[Phase.of(space, strategy, evaluations)],
            evaluator=workers,
            incumbent=Incumbent(OBJECTIVES),
            ledger=ledger,
            keep=lambda incumbent: None,
            baselines=False,
            held_out=False,
            in_flight=None if evaluator == "local" else _IN_FLIGHT,
        )
        workers.fingerprint("search")
        before, start, own = _processor_time_below(), time.perf_counter(), time.process_time()
        search.run()
        return time.perf_counter() - start, time.process_time() - own, _processor_time_below() - before


def _evaluator(name: str, items: int) -> Evaluator:
    worker: Any = NullWorker(items)
    if name == "local":
        return LocalEvaluator(worker, cache=0)
    from evomerge.evaluation.ray_pool import RayEvaluator

    return RayEvaluator(worker, workers=2, cache=0, shared_cache="off")


def _processor_time_below() -> float:
    """Seconds of processor time of the processes that this one has started, and of theirs."""
    ticks, parents = {}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(file.parent.name)] = int(fields[1])
        ticks[int(file.parent.name)] = int(fields[11]) + int(fields[12])
    below = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in below} - below
        if not more:
            break
        below |= more
    return sum(ticks.get(pid, 0) for pid in below - {os.getpid()}) / os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str]) -> None:
    """For profilers: ``python -m cProfile -s cumtime -m scripts.benchmark_loop``."""
    loop(2000, 6, 0, "interval", 1)


if __name__ == "__main__":
    main(())

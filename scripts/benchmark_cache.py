"""What the layer cache saves: streams of candidates as searches make them, with and without each tier."""

from __future__ import annotations

import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from evomerge.merge.cache.shared_cache import SharedCache
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import SlicePlan
from evomerge.merge.resident.merge_count import MergeCount
from evomerge.merge.resident.model import Resident
from evomerge.merge.resident.module_slices import ModuleSlice
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe, parameters
from scripts.benchmark_merge import recipe_of
from scripts.benchmark_models import make_pool

console = Console()
_POPULATION = 8
Stream = Callable[[Pool, str, int, random.Random], Iterator[Recipe]]


def random_stream(pool: Pool, method: str, candidates: int, rng: random.Random) -> Iterator[Recipe]:
    """New parameters everywhere: nothing that was merged before comes back."""
    for _ in range(candidates):
        yield recipe_of(pool, method, rng)


def local_stream(pool: Pool, method: str, candidates: int, rng: random.Random) -> Iterator[Recipe]:
    """One gene, a slice's, changes; the change is kept half of the time."""
    best = recipe_of(pool, method, rng)
    for _ in range(candidates):
        other, at = recipe_of(pool, method, rng), rng.randrange(len(best.slices))
        changed = (*best.slices[:at], other.slices[at], *best.slices[at + 1 :])
        candidate = replace(best, slices=changed)
        yield candidate
        best = candidate if rng.random() < 0.5 else best


def crossover_stream(pool: Pool, method: str, candidates: int, rng: random.Random) -> Iterator[Recipe]:
    """Two of a population cut at one point; the child takes the place of a member."""
    population = [recipe_of(pool, method, rng) for _ in range(_POPULATION)]
    for _ in range(candidates):
        a, b = rng.sample(population, 2)
        at = rng.randrange(1, len(a.slices))
        child = replace(a, slices=a.slices[:at] + b.slices[at:])
        yield child
        population[rng.randrange(_POPULATION)] = child


def data_flow_stream(pool: Pool, method: str, candidates: int, rng: random.Random) -> Iterator[Recipe]:
    """Every layer is some layer of some model, as it is; two layers change from a parent to its child."""
    layers = [(name, layer) for name in pool.info.sources for layer in range(pool.info.layers)]
    path = [rng.choice(layers) for _ in range(pool.info.layers)]
    weight = parameters({"weight": 1.0})
    for _ in range(candidates):
        for _ in range(2):
            path[rng.randrange(len(path))] = rng.choice(layers)
        slices = []
        for slice_ in pool.info.slices:
            model, layer = ("base", None) if slice_.layer is None else path[slice_.layer]
            slices.append(SliceRecipe(slice_, "linear", (Input(model, layer, weight),)))
        yield pool.info.recipe(slices)


class WithoutCache(Resident):
    """Copies what others refer to."""

    def _reference(self, entry: SlicePlan, place: ModuleSlice) -> None:
        return None


STREAMS: dict[str, Stream] = {
    "random": random_stream,
    "local": local_stream,
    "crossover": crossover_stream,
    "data flow": data_flow_stream,
}


def cache(candidates: int, threads: int | None, method: str) -> None:
    """Run the benchmark; see the module."""
    if threads is not None:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        pool = make_pool(Path(scratch), "40M", "float32")
        threads = torch.get_num_threads()
        title = f"Layer cache: {method} of three float32 models of 40M, {candidates} candidates, {threads} threads"
        table = Table(title=title)
        for heading in (
            "stream",
            "tiers",
            "slices computed",
            "bytes computed",
            "saved s",
            "seconds a candidate",
            "of none",
        ):
            table.add_column(heading, justify="left" if heading in ("stream", "tiers") else "right")
        for name, stream in STREAMS.items():
            for row in _tiers(pool, stream, method, candidates, Path(scratch)):
                table.add_row(name, *row)
        console.print(table)
        _two_processes(pool, Path(scratch), method, candidates)


def _tiers(pool: Pool, stream: Stream, method: str, candidates: int, scratch: Path) -> list[tuple[str, ...]]:
    """The same stream through every choice of tiers, candidate by candidate, so that all see the same machine."""
    residents = {
        "none": WithoutCache(pool, cache=0),
        "none, again": WithoutCache(pool, cache=0),  # how far two measurements of the same thing lie apart
        "in the model": Resident(pool, cache=0),
        "+ the worker's": Resident(pool),
        "+ shared": Resident(pool, cache=0, shared=SharedCache(_shared_memory(scratch), 10**10)),
        "+ both": Resident(pool, shared=SharedCache(_shared_memory(scratch), 10**10)),
    }
    took: dict[str, list[float]] = {name: [] for name in residents}
    counts: dict[str, list[MergeCount]] = {name: [] for name in residents}
    recipes = [recipe_of(pool, method, random.Random(-i)) for i in (1, 2)]  # what is noted once per pool is noted
    recipes += stream(pool, method, candidates, random.Random(0))
    order = list(residents)
    for number, recipe in enumerate(recipes):
        plan = make_plan(recipe, pool)
        order = order[1:] + order[:1]
        for name in order:
            if name.startswith("none"):
                residents[name].forget()
            start = time.perf_counter()
            count = residents[name].apply(plan)
            if number >= 2:
                took[name].append(time.perf_counter() - start)
                counts[name].append(count)
    rows: list[tuple[str, ...]] = []
    for name in residents:
        slices = sum(c.computed for c in counts[name]) / (len(pool.info.slices) * candidates)
        size = sum(c.computed_bytes for c in counts[name]) / sum(c.bytes for c in counts[name])
        ratio = statistics.median(took[name]) / statistics.median(took["none"])
        saved = statistics.fmean(c.saved for c in counts[name])
        seconds = f"{saved:.4f}", f"{statistics.median(took[name]):.4f}"
        rows.append((name, f"{slices:.1%}", f"{size:.1%}", *seconds, f"{ratio:.0%}"))
    for resident in residents.values():
        resident.close()
    return rows


def _shared_memory(scratch: Path) -> Path:
    """A folder in shared memory where there is some."""
    root = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="evomerge-benchmark-", dir=root if root.is_dir() else scratch))


def _two_processes(pool: Pool, scratch: Path, method: str, candidates: int) -> None:
    """Two workers, each with every other candidate of one crossover stream, alone and sharing."""
    table = Table(title="Two processes, every other candidate of the crossover stream each, one thread each")
    for heading in ("tiers", "slices computed", "from the other's or one's own files", "seconds a candidate"):
        table.add_column(heading, justify="right" if heading != "tiers" else "left")
    for name, shared in (("the worker's, small", False), ("+ shared", True)):
        folder = _shared_memory(scratch) if shared else None
        arguments = [
            ({n: str(pool.folder(n)) for n, _ in pool.info.refs}, method, candidates, i, folder) for i in range(2)
        ]
        with multiprocessing.get_context("spawn").Pool(2) as workers:
            results = workers.starmap(_half, arguments)
        slices = len(pool.info.slices) * candidates
        computed, fetched, seconds = (sum(numbers) for numbers in zip(*results, strict=True))
        table.add_row(name, f"{computed / slices:.1%}", f"{fetched / slices:.1%}", f"{seconds / candidates:.4f}")
    console.print(table)


def _half(
    folders: dict[str, str], method: str, candidates: int, part: int, shared: Path | None
) -> tuple[int, int, float]:
    """One process's candidates: slices computed, slices from the shared cache, seconds."""
    torch.set_num_threads(1)
    pool = open_pool(folders, base="base")
    size = sum(info.nbytes for info in pool.checkpoints["base"].tensors.values())
    resident = Resident(pool, cache=size, shared=SharedCache(shared, 10**10) if shared else None)
    recipes = list(crossover_stream(pool, method, candidates, random.Random(0)))
    counts, seconds = [], 0.0
    for recipe in recipes[part::2]:
        start = time.perf_counter()
        counts.append(resident.apply(make_plan(recipe, pool)))
        seconds += time.perf_counter() - start
    resident.close()
    return sum(c.computed for c in counts), sum(c.shared for c in counts), seconds

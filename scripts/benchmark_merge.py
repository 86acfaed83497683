"""How fast merging is: bytes moved per second against a plain copy, and seconds against ``mergekit-yaml``."""

from __future__ import annotations

import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from evomerge.export.writer import write_model
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.parallel import merge_slices
from evomerge.merge.execution.sources import Sources
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe, parameters
from evomerge.recipes.yaml_reader import dump_recipe
from scripts.benchmark_models import make_pool

console = Console()
METHODS = ("linear", "task_arithmetic", "slerp", "ties", "dare_linear")
WANTED = {
    "float32": dict(zip(METHODS, (0.85, 0.85, 0.60, 0.50, 0.50), strict=True)),
    "bfloat16": dict(zip(METHODS, (0.60, 0.60, 0.45, 0.35, 0.35), strict=True)),
}
"""Shares of the copy's speed that the project holds itself to on the CPU."""


def recipe_of(pool: Pool, method: str, rng: random.Random) -> Recipe:
    """A recipe with new parameters on every slice, as a search proposes them."""
    sources = list(pool.info.sources)
    names = ["base", *sources] if method == "linear" else sources[:2] if method == "slerp" else sources
    slices = []
    for slice_ in pool.info.slices:
        shared = {"t": rng.uniform(0.2, 0.8)} if method == "slerp" else {}
        inputs = []
        for name in names:
            each = {} if method == "slerp" else {"weight": rng.uniform(0.2, 0.8)}
            if method in ("ties", "dare_linear"):
                each["density"] = rng.uniform(0.3, 0.9)
            inputs.append(Input(name, None, parameters(each)))
        base = Input("base") if method not in ("linear", "slerp") else None
        slices.append(SliceRecipe(slice_, method, tuple(inputs), parameters(shared), base))
    return pool.info.recipe(slices)


def moved(plan: Plan, pool: Pool) -> int:
    """Bytes read and written by a merge: every source and the result once."""
    total = 0
    for entry in plan.slices:
        size = sum(pool.checkpoints["base"].tensors[name].nbytes for name in entry.tensors)
        part = entry.parts[0]
        total += size * (len(part.sources) + (part.base is not None) + 1)
    return total


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def merge(sizes: list[str], dtypes: list[str], device: str, threads: int | None, repeats: int, mergekit: bool) -> None:
    """Run the benchmark; see the module."""
    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device(device)
    where = f"{torch.get_num_threads()} threads" if place.type == "cpu" else torch.cuda.get_device_name(place)
    for size in sizes:
        table = Table(title=f"Merging three models of {size} parameters, {where}, medians of {repeats}")
        for heading in ("dtype", "method", "GB moved", "first s", "s", "GB/s", "copy GB/s", "of the copy", "wanted"):
            table.add_column(heading, justify="left" if heading in ("dtype", "method") else "right")
        for dtype in dtypes:
            with tempfile.TemporaryDirectory() as scratch:
                pool = make_pool(Path(scratch), size, dtype)
                for method in METHODS:
                    table.add_row(dtype, method, *_speed(pool, method, place, repeats))
        console.print(table)
    if mergekit:
        _against_mergekit()


def _speed(pool: Pool, method: str, device: torch.device, repeats: int) -> list[str]:
    """Merging to memory and copying as many bytes, one after the other, so that both see the same machine."""
    rng = random.Random(0)
    sources = Sources(pool, device)
    plans = [make_plan(recipe_of(pool, method, rng), pool) for _ in range(repeats + 3)]
    out = [merge_slice(entry, pool, sources=sources) for entry in plans[0].slices]

    def run(plan: Plan) -> None:
        merge_slices(plan.slices, sources, out)

    volume = moved(plans[0], pool)
    half = volume // 2
    source, target = (torch.ones(half, dtype=torch.uint8, device=device) for _ in range(2))
    source, target = (tensor[: half // 4 * 4].view(torch.float32) for tensor in (source, target))
    first = seconds(lambda: run(plans[1]), device)
    run(plans[2])  # what is worth keeping is kept by now
    target.copy_(source)
    merging, copying = [], []
    for plan in plans[3:]:
        merging.append(seconds(lambda plan=plan: run(plan), device))  # type: ignore[misc]
        copying.append(seconds(lambda: target.copy_(source), device))
    ours, bare = statistics.median(merging), statistics.median(copying)
    ratio = statistics.median(b / a for a, b in zip(merging, copying, strict=True))
    wanted = WANTED.get(pool.info.dtype, {}).get(method) if device.type == "cpu" else None
    speeds = [
        f"{volume / 1e9:.2f}",
        f"{first:.3f}",
        f"{ours:.4f}",
        f"{volume / ours / 1e9:.1f}",
        f"{volume / bare / 1e9:.1f}",
    ]
    return [*speeds, f"{ratio:.0%}", f"{wanted:.0%}" if wanted else ""]


def _against_mergekit() -> None:
    """TIES of three float32 models of 40M: in memory and to disk, against the ``mergekit-yaml`` command."""
    command = shutil.which("mergekit-yaml") or shutil.which("mergekit-yaml", path=str(Path(sys.executable).parent))
    if command is None:
        console.print("mergekit-yaml is not installed: pip install mergekit")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pool = make_pool(folder, "40M", "float32")
        recipe = recipe_of(pool, "ties", random.Random(0))
        (folder / "mergekit.yaml").write_text(to_mergekit(recipe, pool.layout))
        (folder / "recipe.yaml").write_text(dump_recipe(recipe))
        sources, plan = Sources(pool), make_plan(recipe, pool)
        ours = [sys.executable, "-m", "evomerge", "merge", str(folder / "recipe.yaml")]

        out = [merge_slice(entry, pool, sources=Sources(pool)) for entry in plan.slices]

        def in_memory() -> None:
            merge_slices(plan.slices, sources, out)

        cpu = torch.device("cpu")
        theirs = [command, str(folder / "mergekit.yaml"), str(folder / "theirs")]
        subprocess.run([*ours, str(folder / "warm")], check=True, capture_output=True)  # compiles the kernels
        rows = {
            "mergekit-yaml": seconds(lambda: _run(theirs), cpu),
            "evomerge merge, the command": seconds(lambda: _run([*ours, str(folder / "ours")]), cpu),
            "write_model, in a process": seconds(lambda: write_model(recipe, pool, folder / "again"), cpu),
            "in memory, first": seconds(in_memory, cpu),
            "in memory": statistics.median(seconds(in_memory, cpu) for _ in range(5)),
        }
    table = Table(title="TIES of three float32 models of 40M parameters")
    for heading in ("", "seconds", "times faster"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, took in rows.items():
        table.add_row(name, f"{took:.3f}", f"{rows['mergekit-yaml'] / took:.0f}")
    console.print(table)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)

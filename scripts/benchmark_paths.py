"""What it costs to move the resident model to another data flow path, against building the model anew."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from evomerge.export.writer import write_model
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.architecture.stacks import find_layers
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe
from scripts.benchmark_models import CONFIGS, make_pool

console = Console()
_REBUILT = 3
"""How often the slow ways are timed."""


def random_path(pool: Pool, layers: int, rng: np.random.Generator) -> Recipe:
    """Layers of all models in any order, a scale on the way into each."""
    slices, product = [], 1.0
    for place in range(layers):
        model, layer = str(rng.choice(pool.info.sources)), int(rng.integers(pool.info.layers))
        product *= float(rng.uniform(0.8, 1.25))
        for component in (s.component for s in pool.info.slices if s.layer == 0):
            scale = None if component == "norm" else 1 / product
            inputs = (Input(model, layer),)
            slices.append(SliceRecipe(SliceId(component, place), "passthrough", inputs, (), None, scale))
    outer = (s for s in pool.info.slices if s.layer is None)
    slices += [SliceRecipe(s, "passthrough", (Input(pool.info.config_from),)) for s in outer]
    return pool.info.recipe(slices)


def paths(layers: int, switches: int, threads: int | None) -> None:
    """Run the benchmark; see the module."""
    if threads is not None:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        CONFIGS["tiny"] = {
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": layers,
            "vocab_size": 1000,
        }
        made = make_pool(Path(scratch) / "models", "tiny", "float32", 3)
        pool = replace(made, info=replace(made.info, sources=("a", "b")))
        _compare(pool, layers, switches, Path(scratch))


def _compare(pool: Pool, layers: int, switches: int, scratch: Path) -> None:
    rng = np.random.default_rng(0)
    resident = Resident(pool)
    for model in ("a", "b"):  # files rarely align their tensors for use in place: those are copied once, here
        resident.apply(make_plan(pool.info.linear({model: 1.0}), pool))
    for _ in range(20):
        resident.apply(make_plan(random_path(pool, layers, rng), pool))
    planned, applied, copied, noted = list[_Took](), list[_Took](), 0, resident.sources.notes.used
    for _ in range(switches):
        recipe = random_path(pool, layers, rng)
        start = _now()
        plan = make_plan(recipe, pool)
        middle = _now()
        count = resident.apply(plan)
        planned.append(middle - start)
        applied.append(_now() - middle)
        copied += count.computed_bytes
    copied += resident.sources.notes.used - noted
    module = resident.model.module
    size = sum(parameter.nbytes for parameter in find_layers(module)[1].parameters())
    write_model(recipe, pool, scratch / "folded")

    table = Table(title=f"A path of {layers} layers from two Llamas, {size / 1e6:.0f} MB of float32")
    for heading in ("way", "milliseconds, median", "worst", "of the CPU, median", "bytes copied a switch"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    table.add_row("resident: planning", *_times(planned), "0")
    table.add_row("resident: switching", *_times(applied), f"{copied / switches:.0f}")
    table.add_row("deepcopy of the model", *_times(_timed(lambda: copy.deepcopy(module))), f"{size}")
    table.add_row("building it and loading a state", *_times(_timed(lambda: _rebuilt(module))), f"{size}")
    table.add_row("AutoModel on the folded export", *_times(_timed(lambda: _loaded(scratch / "folded"))), f"{size}")
    console.print(table)


class _Took(NamedTuple):
    """Seconds on the clock, and of the CPU: on a busy machine these are fewer."""

    clock: float
    cpu: float

    def __sub__(self, other: _Took) -> _Took:
        return _Took(self.clock - other.clock, self.cpu - other.cpu)


def _now() -> _Took:
    return _Took(time.perf_counter(), time.process_time())


def _timed(run: Callable[[], Any]) -> list[_Took]:
    took = []
    for _ in range(_REBUILT):
        start = _now()
        run()
        took.append(_now() - start)
    return took


def _times(took: list[_Took]) -> tuple[str, str, str]:
    clock, cpu = [each.clock for each in took], [each.cpu for each in took]
    return f"{statistics.median(clock) * 1e3:.2f}", f"{max(clock) * 1e3:.2f}", f"{statistics.median(cpu) * 1e3:.2f}"


def _rebuilt(module: Any) -> Any:
    built = type(module)(module.config)
    built.load_state_dict(module.state_dict())
    return built


def _loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for parameter in loaded.parameters():
        parameter.sum()  # a mapped file is only read when it is used
    return loaded

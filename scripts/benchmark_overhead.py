"""What a candidate of the demo costs beyond its model calls."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from evomerge.candidate import Candidate
from evomerge.config.compose import compose_config
from evomerge.evaluation.worker import Worker
from evomerge.session.parts import build_parts

console = Console()
os.environ["TQDM_DISABLE"] = "1"  # the stock evaluation's progress bars


class Recorder:
    """Records the arguments of every forward of a module, to run the same forwards again alone."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._hook = module.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append((args, kwargs))

    def stop(self) -> None:
        """Record no more."""
        self._hook.remove()


def overhead(folder: Path, seed: int, candidates: int, threads: int | None, overrides: list[str]) -> None:
    """What a candidate of the demo costs beyond its model calls.

    Three ways to score the same random candidates, alternating: evomerge's worker; the same forwards alone; a stock
    `lm_eval.simple_evaluate` of the saved model, its task index already built.
    """
    from evomerge.demo.pool import make_demo_pool

    root = folder / f"seed{seed}"
    make_demo_pool(root, seed)
    exact = "fitness.forwards=exact"  # the same forwards as the stock evaluation's
    config = compose_config(["experiment=demo", f"pool.root='{root}'", exact, *overrides])
    parts = build_parts(config)
    assert parts.pool is not None, "the demo merges models"
    worker = Worker(parts.pool, {"search": parts.fitness}, device="cpu", threads=threads)
    module = worker._resident.model.module
    rng = np.random.default_rng(seed)
    recipes = [parts.space.decode(parts.space.spec.sample(rng)) for _ in range(candidates + 1)]

    worker.evaluate(Candidate(0, recipes[0]))  # the warm-up: items are built, caches are filled
    recorder = Recorder(module)
    worker.evaluate(Candidate(0, recipes[0]))
    recorder.stop()
    ours, alone, stages = [], [], []
    with torch.inference_mode():
        for index, recipe in enumerate(recipes[1:]):
            start = time.perf_counter()
            evaluation = worker.evaluate(Candidate(index, recipe))
            ours.append(time.perf_counter() - start)
            stages.append(dict(evaluation.seconds))
            start = time.perf_counter()
            for args, kwargs in recorder.calls:
                module(*args, **kwargs)
            alone.append(time.perf_counter() - start)
    stock = [_stock(recipe, parts.pool, config) for recipe in recipes[1:4]]

    floor = statistics.median(alone)
    method = recipes[0].slices[0].method
    table = Table(title=f"Seconds per candidate ({method}), medians of {candidates}, {torch.get_num_threads()} threads")
    for heading in ("", "seconds", "of the forwards"):
        table.add_column(heading, justify="left" if not heading else "right")
    paired = statistics.median(mine / bare for mine, bare in zip(ours, alone, strict=True))
    rows = {
        "forwards alone": floor,
        "evomerge": paired * floor,  # the ratio of neighbours in time: the machine's speed drifts
        "  merge": statistics.median(s["merge"] for s in stages),
        "  model calls": statistics.median(s["model"] for s in stages),
        "  other": statistics.median(s["other"] for s in stages),
        "stock simple_evaluate": statistics.median(stock),
    }
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.4f}", f"{seconds / floor:.3f}")
    console.print(table)
    beyond = statistics.median((s["merge"] + s["other"]) / s["model"] for s in stages)
    console.print(f"beyond model calls (merge + other): {beyond:.1%} of the model calls")


def _stock(recipe: Any, pool: Any, config: Any) -> float:
    """Seconds of the stock evaluation of one candidate: write the model, load it, score it."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from evomerge.export.writer import write_model

    tasks = [term["task"] for term in config.fitness.tasks]
    manager = TaskManager(include_path=config.fitness.include_path, include_defaults=False)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "model"
        start = time.perf_counter()
        write_model(recipe, pool, out)
        lm_eval.simple_evaluate(
            model="hf",
            model_args=f"pretrained={out},dtype={pool.info.dtype}",
            tasks=tasks,
            batch_size=config.fitness.batch_size,
            device="cpu",
            task_manager=manager,
            bootstrap_iters=0,
        )
        return time.perf_counter() - start

"""What folding the scales of a path into its weights changes: the norms' epsilon, seen on the demo's models."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from evomerge.candidate import Candidate, Evaluation
from evomerge.config.compose import compose_config
from evomerge.errors import InfeasibleError
from evomerge.evaluation.worker import Worker
from evomerge.merge.planning.plan import make_plan
from evomerge.models.architecture.stacks import find_layers
from evomerge.recipes.path import path_of
from evomerge.recipes.recipe import Recipe
from evomerge.session.parts import build_parts
from scripts.benchmark_overhead import Recorder

console = Console()
os.environ["TQDM_DISABLE"] = "1"
_CALLS = 4
"""Forwards of a candidate whose logits are compared."""


def folding(folder: Path, seed: int, paths: int, threads: int | None, overrides: list[str]) -> None:
    """Random paths with scales, once with the hidden states scaled on their way into every layer, once folded."""
    if threads is not None:
        torch.set_num_threads(threads)
    root = folder / f"seed{seed}"
    config = compose_config(["experiment=demo_data_flow", f"pool.root='{root}'", *overrides])
    parts = build_parts(config)
    assert parts.pool is not None, "the demo's searches have a pool"
    worker = Worker(parts.pool, {"search": parts.fitness}, device="cpu", threads=threads)
    module: Any = worker._resident.model.module
    rng = np.random.default_rng(seed)
    relative, absolute, likelihood, turned, right, items, products = 0.0, 0.0, 0.0, 0, 0, 0, []
    done = 0
    while done < paths:
        try:
            recipe = parts.space.decode(parts.space.spec.sample(rng))
        except InfeasibleError:
            continue
        explicit, wanted, calls = _explicit(worker, recipe, parts.pool)
        folded = worker.evaluate(Candidate(done, recipe))
        given = _logits(module, calls)
        for one, other in zip(given, wanted, strict=True):
            gap = float((one - other).abs().max())
            absolute, relative = max(absolute, gap), max(relative, gap / float(other.abs().max()))
        for name, values in explicit.items.items():
            gaps = np.abs(np.asarray(folded.items[name]) - np.asarray(values))
            if name.endswith("/acc"):
                turned, right, items = turned + int((gaps > 0).sum()), right + int(sum(values)), items + len(gaps)
            else:
                likelihood = max(likelihood, float(gaps.max()))
        found = path_of(recipe)
        assert found is not None, "random genomes are no source in its place"
        products.append(
            max(abs(float(p)) ** s for p in np.cumprod([x.input_scale for x in found.layers]) for s in (-1, 1))
        )
        done += 1
    table = Table(title=f"{paths} random paths of the demo's models, folded against explicit")
    table.add_column("")
    table.add_column("", justify="right")
    for name, text in {
        "largest difference of logits": f"{absolute:.1e}",
        "  relative to the largest logit": f"{relative:.1e}",
        "largest change of an item's log-likelihood": f"{likelihood:.1e}",
        "items right in one way and wrong in the other": f"{turned} of {items}, of which {right} are right",
        "product of scales, furthest from 1 (median, largest)": f"{np.median(products):.3g}, {max(products):.3g}",
    }.items():
        table.add_row(name, text)
    console.print(table)


def _explicit(worker: Worker, recipe: Recipe, pool: Any) -> tuple[Evaluation, list[torch.Tensor], list[Any]]:
    """The scores of a path whose hidden states are scaled themselves; the logits of some forwards, and these."""
    found = path_of(recipe)
    assert found is not None, "random genomes are no source in its place"
    plain = replace(recipe, slices=tuple(replace(entry, scale=None) for entry in recipe.slices))
    worker._resident.apply(make_plan(plain, pool))
    module = worker._resident.model.module
    with ExitStack() as stack:
        for layer, step in zip(find_layers(module)[1], found.layers, strict=True):
            stack.callback(layer.register_forward_pre_hook(_scaled(step.input_scale), with_kwargs=True).remove)
        recorder = Recorder(module)
        evaluation = worker.evaluate(Candidate(0, plain))
        recorder.stop()
        calls = recorder.calls[:_CALLS]
        return evaluation, _logits(module, calls), calls


def _scaled(factor: float) -> Any:
    def hook(layer: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (args[0] * factor, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * factor}

    return hook


@torch.inference_mode()
def _logits(module: Any, calls: list[Any]) -> list[torch.Tensor]:
    return [module(*args, **kwargs).logits for args, kwargs in calls]

"""What hidden states save: against the depth of the first change, and of the model time of searches."""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import evomerge
from evomerge.demo.pool import make_demo_pool
from evomerge.merge.resident.hidden_states import HiddenStates
from evomerge.models.architecture.stacks import find_layers
from fitness._lm_eval.shared_forwards import BatchLimits, SharedForwards, default_tokens
from scripts.benchmark_forwards import CASES, alternating

console = Console(width=None if sys.stdout.isatty() else 150)  # tables are read from files too

_SEARCHES = {
    "paths, scales in steps of 0.1": ["experiment=demo_data_flow", "search_space.scale_range.resolution=0.1"],
    "paths, any scale": ["experiment=demo_data_flow"],
    "paths without scales": ["experiment=demo_data_flow", "search_space.scales=none"],
    "M2N2, mixed to both sides of a split": ["experiment=demo", "search_space=lineage", "strategy=m2n2"],
    "M2N2, crossovers": ["experiment=demo", "search_space=lineage", "strategy=m2n2", "search_space.mix.high=0"],
}


def depths(names: list[str], dtypes: list[str], threads: int | None, repeats: int) -> None:
    """For each case, the share of a candidate's time that is saved where its first new layer is so far up."""
    if threads is not None:
        torch.set_num_threads(threads)
    for name in names:
        for dtype in dtypes:
            table = Table(title=f"{name}, {dtype}: {torch.get_num_threads()} threads, median of {repeats}")
            for column in (
                "first new layer",
                "of the layers below",
                "tokens saved",
                "whole s",
                "from there s",
                "time saved",
            ):
                table.add_column(column, justify="right")
            module = CASES[name].model(getattr(torch, dtype))
            for row in _rows(module, CASES[name].requests(), repeats):
                table.add_row(*row)
            console.print(table)


def _rows(module: Any, requests: Any, repeats: int) -> list[list[str]]:
    layers = len(find_layers(module)[1])
    softmax = None if module.dtype == torch.float32 else torch.float32
    tokens = default_tokens(module.device, module.config.hidden_size)
    shared = SharedForwards(requests, module, max_length=2048, limits=BatchLimits(tokens), softmax_dtype=softmax)
    known = [f"known {depth}" for depth in range(layers + 1)]
    number = 0

    def scored(depth: int | None) -> None:
        """A candidate that is new from a layer on; without states for none."""
        nonlocal number
        number += 1
        if depth is not None:
            states.begin([*known[: depth + 1], *(f"{number} {place}" for place in range(depth, layers))])
        shared.score(module, states=None if depth is None else states)

    rows = []
    for depth in range(0, layers + 1, max(1, layers // 6)):
        states = HiddenStates(1 << 32)
        states.begin(known)
        shared.score(module, states=states)
        whole, above = alternating(repeats, partial(scored, None), partial(scored, depth))
        saved = 1 - above / whole
        share = f"{depth / layers:.0%}"
        rows.append(
            [str(depth), share, f"{shared.hidden / shared.tokens:.0%}", f"{whole:.2f}", f"{above:.2f}", f"{saved:.0%}"]
        )
    return rows


def searches(evaluations: int, limit: int, folder: Path | None, overrides: list[str]) -> None:
    """Searches over the demo's models with hidden states and without: tokens, and seconds in the model."""
    table = Table(title=f"searches of {evaluations} evaluations over the demo's models, {limit} items a task")
    for column in (
        "search",
        "tokens run",
        "saved by hidden states",
        "model s without",
        "with",
        "time saved",
        "same scores",
    ):
        table.add_column(column, justify="left" if column == "search" else "right")
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or make_demo_pool(Path(temporary) / "pool", 0, quick=True, progress=False)
        for name, words in _SEARCHES.items():
            runs = {
                states: evomerge.search(
                    *words,
                    *overrides,
                    pool={"root": root},
                    search={"evaluations": evaluations},
                    fitness={"limit": limit},
                    held_out={"limit": 1},
                    evaluator={"hidden_states": states},
                    run_dir=Path(temporary) / f"{name} {states}",
                    display="quiet",
                )
                for states in ("0", "auto")
            }
            off, on = (_told(run) for run in runs.values())
            run, hidden = (sum(event["tokens"].get(key, 0) for event in on) for key in ("run", "hidden"))
            before, after = (sum(event["seconds"]["model"] for event in events) for events in (off, on))
            same = [event["objectives"] for event in off] == [event["objectives"] for event in on]
            table.add_row(
                name,
                f"{run:,.0f}",
                f"{hidden / run:.1%}",
                f"{before:.1f}",
                f"{after:.1f}",
                f"{1 - after / before:.1%}",
                "yes" if same else "no",
            )
    console.print(table)


def _told(run: evomerge.Run) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run.path / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    return [e for e in events if e["event"] == "told" and e["split"] == "search" and e["status"] == "ok"]

"""What the terminal shows: progress of a search and of a merge, plans, scores, the final table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

if TYPE_CHECKING:  # merging needs neither a configuration nor what it builds
    from evomerge.candidate import Evaluation
    from evomerge.config import Config
    from evomerge.factory import Parts
    from evomerge.ledger import Event

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


class Progress:
    """A live line while a search runs; plain lines when standard output is not a terminal."""

    def __init__(self, config: Config, parts: Parts) -> None:
        self._total = config.search.evaluations
        self._objective = parts.fitness.objectives[0]
        self._done = self._failed = 0
        self._names: dict[int, str] = {}
        self._best = float("nan")
        self._best_baseline = float("nan")
        self._run_dir = config.run_dir
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[best]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("searching", total=self._total, best="")

    def __enter__(self) -> Progress:
        console.print(f"run folder: {self._run_dir}")
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event of the ledger."""
        if event["event"] == "improved":
            self._best = event["objective"]
            gain = f" ({self._best - self._best_baseline:+.4f} on the best baseline)"
            if not console.is_terminal:
                console.print(f"  {self._done}/{self._total} best {self._best:.4f}{gain}")
        elif event["event"] == "asked" and event["name"] is not None:
            self._names[event["candidate"]] = event["name"]
        elif event["event"] == "told":
            self._told(event)

    def _told(self, event: Event) -> None:
        value = event["objectives"].get(self._objective.name, float("nan"))
        if event["split"] == "held_out":
            self._bar.update(self._task, description="held-out items")
            return
        if event["candidate"] in self._names:
            best = self._best_baseline
            if best != best or self._objective.gain(value) > self._objective.gain(best):
                self._best_baseline = value
            console.print(f"  baseline {self._names[event['candidate']]}: {self._objective.name} {value:.4f}")
            return
        self._done += 1
        if event["status"] != "ok":
            self._failed += 1
            if self._failed <= 3:
                errors.print(f"  candidate {event['candidate']} {event['status']}: {event['error']}")
        shown = f"best {self._best:.4f}, best baseline {self._best_baseline:.4f}"
        failed = f", {self._failed} failed" if self._failed else ""
        self._bar.update(self._task, completed=self._done, best=shown + failed)


@contextmanager
def merge_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar over the bytes of a model being written; yields the function to call with (done, total)."""
    with Bar(console=errors, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("merging", total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def warn_settings(config: Config, parts: Parts) -> None:
    """Warn of settings that make the result hard to trust."""
    for caution in parts.fitness.cautions():
        errors.print(f"[bold yellow]warning:[/] {escape(caution)}")
    slots, ordered = parts.evaluator.slots, config.search.ordered
    if ordered and config.search.in_flight is None and slots > 1 and getattr(parts.strategy, "asynchronous", False):
        errors.print(
            f"[yellow]warning:[/] in order, the strategy's own batch is evaluated at a time, which may leave some of "
            f"{slots} workers idle; set search.in_flight={slots}, or search.ordered=false"
        )
    if config.held_out is None:
        errors.print(
            "[yellow]warning:[/] there is no held-out fitness: the best score will be that of the items it was "
            "chosen on; set one with fitness@held_out=lm_eval held_out.tasks=[...]"
        )


def print_plan(config: Config, parts: Parts) -> None:
    """What a search with this configuration would take."""
    pool = parts.pool
    table = Table(title="The configuration is valid", show_header=False, title_justify="left")
    several = parts.phases if len(parts.phases) > 1 else ()
    if several:
        table.add_row("phases", ", then ".join(f"{phase.name} ({phase.evaluations} evaluations)" for phase in several))
    if pool is None:
        table.add_row("genes", str(len(parts.space.spec)))
        console.print(table)
        return
    nbytes = {name: checkpoint.nbytes for name, checkpoint in pool.checkpoints.items()}
    models = ", ".join(f"{name} ({_size(size)})" for name, size in nbytes.items())
    table.add_row("pool", models + (f"; base: {pool.info.base}" if pool.info.base else ""))
    table.add_row("merged model", f"{pool.info.layers} layers, {len(pool.info.slices)} slices, {pool.info.dtype}")
    table.add_row("genes", str(len(parts.space.spec)))
    table.add_row("objectives", ", ".join(f"{o.name} ({o.direction})" for o in parts.fitness.objectives))
    table.add_row("evaluations", f"{config.search.evaluations}, {parts.evaluator.slots} at a time")
    resident = max(nbytes.values())
    folded = sum(checkpoint.memory for checkpoint in pool.checkpoints.values())
    table.add_row(
        "memory",
        f"{_size(sum(nbytes.values()))} of sources, mapped; {_size(resident)} for each resident model"
        + (f"; {_size(folded)} for tensors with adapters folded in" if folded else ""),
    )
    table.add_row("disk", f"{_size(resident)} to write the winner with `evomerge merge`")
    console.print(table)


def print_scores(title: str, evaluation: Evaluation) -> None:
    """Every metric of one evaluation."""
    table = Table("metric", "value", title=title, title_justify="left")
    for name, value in {**evaluation.metrics, **evaluation.objectives}.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)


def print_result(run: Path, imports: Sequence[str] = ()) -> None:
    """The final table of a run, and what to do next; its merge methods may need `imports`."""
    from evomerge.report.run_reader import NoBaselinesError
    from evomerge.report.table import render, summarize

    needed = "".join(f" --import {module}" for module in imports)
    try:
        console.print(render(summarize(run)))
    except NoBaselinesError:
        console.print("There is no table: without baselines the winner has nothing to be compared with.")
    console.print(f"\nThe recipe for mergekit:   evomerge export {run} --format mergekit{needed}", soft_wrap=True)
    console.print(f"The model, ready to load:  evomerge merge {run} OUT{needed}", soft_wrap=True)


def _size(nbytes: int) -> str:
    value = float(nbytes)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"

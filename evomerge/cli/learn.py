"""``evomerge learn``: coefficients, a mask or factors of columns, learnt by gradients on data, as a recipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.config.schema import Config

if TYPE_CHECKING:
    from rich.table import Table

    from evomerge.calibration.learning.loop import History

_ROWS = 10


def run(arguments: Sequence[str]) -> int:
    """Learn what the arguments describe, or go on with it."""
    from evomerge.cli.composed import hydra_app

    return hydra_app("learn", arguments, learn)


def learn(config: Config) -> None:
    """Learn, write the recipe, and print what was lost on the way."""
    from rich.progress import Progress

    from evomerge.errors import OutputError
    from evomerge.evaluation.devices import choose_device
    from evomerge.report.formatting import count
    from evomerge.report.plain_console import console, errors
    from evomerge.session.calibration_pool import calibration_pool, check_not_held_out
    from evomerge.session.learning import learnt_recipe, plan_learning, use_of, write_learnt

    out = Path(config.learning.out)
    if out.exists():
        raise OutputError(f"learning.out={out} is there already", "a file to be made", "choose another name")
    if not out.parent.is_dir():
        raise OutputError(f"the folder of learning.out={out} is not there", "a folder that exists", "make it")
    found = plan_learning(config, calibration_pool(config))
    check_not_held_out(config, found.documents)
    device = choose_device(config.statistics.device)
    items = ", ".join(f"{count(len(own), 'item')} of {model}" for model, own in found.items.items())
    errors.print(f"{found.settings.method}: {count(found.numbers, 'number')}, {items}, on {device}")
    with Progress(console=errors, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("learning", total=None)
        recipe, history = learnt_recipe(
            found,
            str(device),
            config.learning.checkpoint,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    write_learnt(recipe, out)
    console.print(lost(history))
    console.print(f"wrote {out}: {use_of(recipe, out)}", highlight=False)


def lost(history: History) -> Table:
    """What was lost, in ten stretches of steps: the mean of each part."""
    from rich.table import Table

    table = Table("steps", *history.names, "loss", title="Losses", title_justify="left")
    steps = len(history.values)
    rows = min(_ROWS, steps)
    for row in range(rows):
        first, last = row * steps // rows, (row + 1) * steps // rows
        means = history.values[first:last].mean(0)
        shown = f"{first + 1}" if last == first + 1 else f"{first + 1} to {last}"
        table.add_row(shown, *(f"{float(value):.4g}" for value in means), f"{float(means.sum()):.4g}")
    return table

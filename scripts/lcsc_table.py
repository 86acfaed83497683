"""LCSC beside what it starts from, on held-out items: `python scripts/lcsc_table.py LABEL=RUN ... [--digits N]`.

Prints a Markdown table with a row for every run of `experiment=lcsc` (or `lcsc_evolution`): the last checkpoint, the
uniform average, the best moving average, the winner, and paired tests of the winner against each. The best moving
average is the one that scores best on the held-out items themselves, which favours it. Runs that are called alike but
for a number have a row together, with each run's own best moving average.

`--digits N` runs `experiment=lcsc_digits` with N seeds, by CMA-ES and by the paper's evolution, without keeping the
runs, and prints the same for the test images. There all seeds answer the same items: the last row tests their means,
item by item, with each seed's own best moving average.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evomerge.config.compose import compose_config
from evomerge.errors import ConfigError, EvomergeError
from evomerge.genomes.genome import Genome
from evomerge.recipes.pool_info import UNIFORM
from evomerge.recipes.yaml_reader import read_recipe_file
from evomerge.report.formatting import p_text
from evomerge.report.history import read_history
from evomerge.report.outcome import read_run
from evomerge.report.statistics import Floats, compare
from evomerge.session.parts import build_parts
from evomerge.session.run import run as run_search
from fitness.digits_checkpoints import CombinationFitness
from search_spaces.checkpoints import CoefficientSpace

Scores = Mapping[str, Floats]
"""By task, what one model got on each item."""

BEST = "LCSC"
EMA = "EMA "
_OTHERS = (UNIFORM, f"{EMA}each")
EVOLUTION = ("strategy=ga", "strategy.popsize=20", "strategy.mutation=0.3", "strategy.mutation_eta=100")
HEAD = ["", "last", "uniform", "best EMA", "LCSC", "against last", "uniform", "best EMA", "negative", "largest"]


def mean_of(scores: Scores) -> float:
    """The mean over tasks of their means."""
    return float(np.mean([values.mean() for values in scores.values()]))


def row(label: str, models: Mapping[str, Scores], coefficients: Floats | None = None) -> str:
    """A row of the table.

    Args:
        label: in its first cell.
        models: by name: averages, `BEST`, and the last checkpoint, under any other name.
        coefficients: of the winner.
    """
    others = compared(models)
    cells = [label, *(f"{mean_of(models[name]):.3f}" for name in (*others, BEST))]
    cells[3] += f" ({others[-1].removeprefix(EMA)})"
    for name in others:
        found = compare(models[BEST], models[name])
        cells.append(f"{found.difference:+.3f} ({p_text(found.p_value)})")
    if coefficients is None:
        return line([*cells, "", ""])
    return line([*cells, f"{(coefficients < 0).sum()} of {len(coefficients)}", f"{np.abs(coefficients).max():.2f}"])


def compared(models: Mapping[str, Scores]) -> list[str]:
    """Names of the last checkpoint, the uniform average and the best of the moving averages."""
    averages = {name: own for name, own in models.items() if name.startswith(EMA)}
    last = next(name for name in models if name not in (*averages, UNIFORM, BEST))
    return [last, UNIFORM, max(averages, key=lambda name: mean_of(averages[name]))]


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def read_models(run: Path) -> tuple[dict[str, Scores], NDArray[np.float64]]:
    """What the models of a run's table got on held-out items, and the winner's coefficients.

    Raises:
        EvomergeError: the folder is no run, or has no held-out scores.
    """
    record = read_run(run)
    if record.best is None or record.split != "held_out":
        raise ConfigError(f"run {run} has no winner scored on held-out items", "finished runs", "resume it")
    metrics = record.headlines(record.best.evaluation)
    models: dict[str, Scores] = {
        (BEST if model is record.best else model.name): {
            task: model.evaluation.items[metric] for task, metric in metrics.items()
        }
        for model in (*record.baselines, record.best)
    }
    recipe = read_recipe_file(record.folder.best_recipe, "the winner")
    weights = [dict(own.parameters)["weight"] for own in recipe.slices[0].inputs]
    return models, np.array(weights, dtype=np.float64)


def of_runs(runs: Sequence[tuple[str, Path]]) -> list[str]:
    """A row for every run over models, then one for all runs that are called alike but for a number.

    Raises:
        EvomergeError: a folder is no run, or has no held-out scores.
    """
    rows, groups = [], dict[str, list[dict[str, Scores]]]()
    for label, run in runs:
        models, weights = read_models(run)
        rows.append(row(label, models, weights))
        groups.setdefault(label.rstrip("0123456789 "), []).append(models)
    for name, every in groups.items():
        if len(every) > 1:
            rows.append(
                row(f"{name}, all {len(every)}", {own: _joined(every, own) for own in ("last", *_OTHERS, BEST)})
            )
    return rows


def _joined(every: Sequence[dict[str, Scores]], name: str) -> Scores:
    """Scores of what is called by one name in every run, each task of each run by itself."""
    found: dict[str, Floats] = {}
    for place, models in enumerate(every):
        own = dict(zip(("last", *_OTHERS, BEST), (*compared(models), BEST), strict=True))[name]
        found |= {f"{place} {task}": values for task, values in models[own].items()}
    return found


def digits(seeds: int, evaluations: int, folder: Path) -> list[str]:
    """The rows of the digits network."""
    rows = []
    for label, more in (("CMA-ES", ()), ("evolution", EVOLUTION)):
        every: list[Mapping[str, Scores]] = []
        for seed in range(seeds):
            run_dir = folder / f"{label}-{seed}"
            words = [f"search.seed={seed}", f"search.evaluations={evaluations}", f"run_dir='{run_dir}'", *more]
            config = compose_config(["experiment=lcsc_digits", *words])
            parts = build_parts(config)
            space, test = cast(CoefficientSpace, parts.space), cast(CombinationFitness, parts.held_out)
            run_search(config, parts)
            trials = [trial for trial in read_history(run_dir).trials if trial.status == "ok"]
            best = Genome(tuple(max(trials, key=lambda trial: trial.objectives["accuracy"]).genome))
            genomes = {**space.starts, BEST: best}
            every.append({name: {"digits": test.score_genome(g).items["digits/acc"]} for name, g in genomes.items()})
            rows.append(row(f"{label} {seed}", every[-1], space.coefficients(best)["model"]))
        named = [dict(zip(("last", *_OTHERS, BEST), (*compared(own), BEST), strict=True)) for own in every]
        means = {
            name: {
                "digits": np.mean([own[place[name]]["digits"] for own, place in zip(every, named, strict=True)], axis=0)
            }
            for name in named[0]
        }
        rows.append(row(f"{label}, all {seeds}", means))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="Print LCSC's held-out scores beside those of what it starts from.")
    parser.add_argument("runs", nargs="*", metavar="LABEL=RUN", help="a run folder and what to call it")
    parser.add_argument("--digits", type=int, default=0, metavar="N", help="also run the digits network with N seeds")
    parser.add_argument("--evaluations", type=int, default=500, help="of each run on digits (default: 500)")
    given = parser.parse_args(arguments)
    try:
        named = (own.rpartition("=") for own in given.runs)
        rows = of_runs([(label or folder, Path(folder)) for label, _, folder in named])
        if given.digits:
            with TemporaryDirectory() as folder:
                rows += digits(given.digits, given.evaluations, Path(folder))
    except EvomergeError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join([line(HEAD), line(["---"] * len(HEAD)), *rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

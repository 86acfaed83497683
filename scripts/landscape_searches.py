"""Searches on a landscape: for `scripts/compare_searches.py --landscape`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evomerge.api.searching import search
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome
from evomerge.landscape.file import read_landscape
from evomerge.landscape.landscape import Landscape
from evomerge.objectives import Objective
from evomerge.report.formatting import p_text
from evomerge.report.history import read_history
from evomerge.report.statistics import Floats, sign_flip
from evomerge.run.folder import RunFolder


def parse_searches(arguments: Sequence[str]) -> dict[str, list[str]]:
    """``LABEL=OVERRIDES`` or the name of a strategy, by label; the overrides in one word, as a shell would split it.

    Raises:
        ConfigError: no search, a label twice, or overrides that are none.
    """
    searches: dict[str, list[str]] = {}
    for argument in arguments:
        label, given, overrides = argument.partition("=")
        words = shlex.split(overrides) if given else [f"strategy={label}"]
        if not label or label in searches or not all("=" in word for word in words):
            allowed = "a strategy, or LABEL='KEY=VALUE KEY=VALUE', each label once"
            raise ConfigError(f"the argument {argument!r}", allowed, "as in wide='strategy=cma_es strategy.sigma0=0.5'")
        searches[label] = words
    return searches


def run_all(
    file: Path, searches: Mapping[str, Sequence[str]], seeds: int, evaluations: int, folder: Path
) -> dict[str, list[Path]]:
    """The run folders of every search with every seed; those that are there already are kept.

    The seed is that of the strategy and of the items that are drawn: searches of the same seed see the same items.

    Raises:
        EvomergeError: a search that cannot be run.
    """
    runs: dict[str, list[Path]] = {label: [] for label in searches}
    for seed in range(seeds):
        for label, words in searches.items():
            run = folder / f"{label}-{seed}"
            runs[label].append(run)
            if run.exists() and read_history(run).stopped is not None:
                continue
            search(
                "experiment=landscape",
                f"fitness.file='{file.absolute()}'",
                f"search.seed={seed}",
                f"fitness.seed={seed}",
                f"search.evaluations={evaluations}",
                f"run_dir='{run}'",
                *words,
                display="quiet",
            )
    return runs


def true_best_so_far(run: RunFolder | Path, landscape: Landscape) -> Floats:
    """What the landscape expects of the best candidate so far, after each evaluation; NaN before the first.

    The best is the one that the search would return, by the scores that it saw: what it is worth is another matter.
    """
    history = read_history(run)
    objective = history.objective
    assert objective is not None
    ranked, told = [], []
    for trial in history.trials:
        score = trial.objectives.get(objective.name, np.nan) if trial.status == "ok" else np.nan
        ranked.append(score if objective.direction == "maximize" else -score)
        told.append(Genome(tuple(trial.genome)))
    values = landscape.predict(told)
    worth = np.array([landscape.objectives_of(row)[objective.name] for row in values])
    found, best = np.full(len(worth), np.nan), -1
    for place, score in enumerate(ranked):
        if not np.isnan(score) and (best < 0 or score > ranked[best]):
            best = place
        found[place] = worth[best] if best >= 0 else np.nan
    return found


def landscape_table(file: Path, runs: Mapping[str, Sequence[Path]], budgets: Sequence[int]) -> str:
    """A Markdown table: by search the mean over seeds at several budgets, tested against the first search.

    The test pairs the seeds (`sign_flip`).
    """
    landscape = read_landscape(file)
    objective: Objective = landscape.objectives[0]
    curves = {label: [true_best_so_far(run, landscape) for run in own] for label, own in runs.items()}
    first = next(iter(curves))
    heads = [f"{budget} | p" for budget in budgets]
    lines = [f"| {objective.name} after | " + " | ".join(heads) + " |", "|" + " --- |" * (2 * len(budgets) + 1)]
    for label, own in curves.items():
        cells = [label]
        for budget in budgets:
            values, others = (_at(each, budget) for each in (own, curves[first]))
            cells.append(
                f"{values.mean():.4f} ± {values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0:.4f}"
            )
            cells.append("" if label == first else p_text(sign_flip(values - others, np.random.default_rng(0))))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _at(curves: Sequence[Floats], budget: int) -> Floats:
    """Of every seed after so many evaluations, or after all where a search had no more to propose."""
    return np.array([curve[min(budget, len(curve)) - 1] for curve in curves])

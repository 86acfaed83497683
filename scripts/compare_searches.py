"""Searches side by side: `python scripts/compare_searches.py LABEL=RUN [LABEL=RUN ...]`.

Prints a Markdown table of the held-out scores of run folders. The runs of the first label are what the others are
tested against: the first run of every label with the first of it, the second with the second and so on, paired item
by item. Means and tests weigh tasks as the first run's fitness does, whatever the objectives of the others are. With
three seeds:

    python scripts/compare_searches.py parameter=runs/parameter-{0,1,2} hybrid=runs/hybrid-{0,1,2}

`--figure curves.svg` draws the best mean of the tasks' first metrics so far, on the search items, by evaluations,
whatever a search's own objectives are: the mean over runs, and their range (`pip install 'evomerge[figures]'`).

`--landscape FILE` runs the searches itself, without models, on what `evomerge export --format landscape` made of a run:
strategies, or labels with any overrides of `evomerge search`, each with `--seeds` seeds. The table has what the
landscape expects of the best candidate so far at several budgets, and tests every search against the first:

    python scripts/compare_searches.py --landscape L.npz random cma_es wide='strategy=cma_es strategy.sigma0=0.5'

`--pools` runs them on the demo's pools (`experiment=demo`, or a search's own), one search of each kind on each pool,
with the place of the pool as its seed. The table has the mean of the tasks by pool; the items of all pools are tested
together, each a stratum. With `--runs` what is there already is kept, and what was stopped goes on:

    python scripts/compare_searches.py cma_es smac='experiment=medsamix' --overrides 'search.evaluations=150' \
        --pools demo_pool/seed{0,1,2} --runs runs/systems
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from evomerge.api.run import Run
from evomerge.api.searching import search
from evomerge.errors import ConfigError, EvomergeError
from evomerge.report.formatting import p_text
from evomerge.report.history import read_history
from evomerge.report.outcome import RunRecord, Scored, read_run, task_name
from evomerge.report.statistics import Comparison, Floats, compare


def parse_runs(arguments: Sequence[str]) -> dict[str, list[Path]]:
    """``LABEL=FOLDER`` arguments, in order.

    Raises:
        ConfigError: an argument without a label or a folder, or labels of different numbers of runs.
    """
    runs: dict[str, list[Path]] = {}
    for argument in arguments:
        label, _, folder = argument.partition("=")
        if not (label and folder):
            raise ConfigError(f"the argument {argument!r}", "LABEL=RUN", "name the search, as in hybrid=runs/hybrid-0")
        runs.setdefault(label, []).append(Path(folder))
    counts = {label: len(folders) for label, folders in runs.items()}
    if len(set(counts.values())) > 1:
        given = ", ".join(f"{count} of {label}" for label, count in counts.items())
        raise ConfigError(f"there are runs: {given}", "as many of every label, for they are compared pair by pair")
    return runs


def table(runs: Mapping[str, Sequence[Path]]) -> str:
    """The Markdown table: models of the pool, then every run, then every label over all of its runs.

    Raises:
        EvomergeError: a folder is no run, or its winner or baselines have no held-out scores of these tasks.
    """
    records = {label: [read_run(folder) for folder in folders] for label, folders in runs.items()}
    reference, first = next(iter(records)), next(iter(records.values()))[0]
    metrics = first.headlines(_best(first).evaluation)
    lines = [
        _row(["", *_short(list(metrics)), "mean", f"against {reference}", "p"]),
        _row(["---"] * (len(metrics) + 4)),
    ]
    lines += [_scores(model.name, model, metrics, first) for model in first.baselines]
    for number in range(len(records[reference])):
        for label, own in records.items():
            name = f"{label} {number}" if len(own) > 1 else label
            tested = None if label == reference else _tested(own[number], records[reference][number], metrics)
            lines.append(_scores(name, _best(own[number]), metrics, first, tested))
    if len(records[reference]) > 1:
        lines += [_together(label, own, records[reference], metrics) for label, own in records.items()]
    return "\n".join(lines)


def run_on_pools(
    pools: Sequence[Path], searches: Mapping[str, Sequence[str]], overrides: Sequence[str], folder: Path
) -> dict[str, list[Path]]:
    """The run folders of every search on every pool; those that are there already are kept, or resumed.

    Args:
        pools: folders of demo pools. The place of a pool is the seed of its searches.
        searches: overrides by label. The first has baselines, unless they say otherwise, the others none.
        overrides: of all of them.
        folder: where the runs go.

    Raises:
        EvomergeError: a search that cannot be run.
    """
    runs: dict[str, list[Path]] = {label: [] for label in searches}
    for label, own in searches.items():
        words = [] if any(word.startswith("experiment=") for word in own) else ["experiment=demo"]
        words += [] if label == next(iter(searches)) else ["search.baselines=false"]
        for number, pool in enumerate(pools):
            run = folder / f"{label.replace(' ', '-')}-{pool.name}"
            runs[label].append(run)
            if not run.exists():
                print(f"{pool}: {label}", file=sys.stderr, flush=True)
                each = [f"pool.root='{pool}'", f"search.seed={number}", *overrides, *own, f"run_dir='{run}'"]
                search(*words, *each, display="quiet")
            elif read_history(run).stopped is None:
                Run(run).resume(display="quiet")
    return runs


def pools_table(runs: Mapping[str, Sequence[Path]], names: Sequence[str]) -> str:
    """The Markdown table of searches on several pools: means by pool, and a test on the items of all of them.

    Args:
        runs: of every search one on each pool.
        names: of the pools.

    Raises:
        EvomergeError: a folder is no run, or its winner has no held-out scores of these tasks.
    """
    records = {label: [read_run(folder) for folder in folders] for label, folders in runs.items()}
    reference, first = next(iter(records.items()))
    metrics = first[0].headlines(_best(first[0]).evaluation)
    lines = [
        _row(["", *names, "mean", f"against {reference}", "p"]),
        "| --- |" + " ---: |" * (len(names) + 3),
    ]

    def means(models: Sequence[Scored]) -> list[str]:
        found = [_values(model, metrics, first[0])[-1] for model in models]
        return [f"{value:.3f}" for value in (*found, float(np.mean(found)))]

    def strata(models: Sequence[Scored]) -> dict[str, Floats]:
        items = [_items(model, metrics) for model in models]
        return {f"{task}/{number}": own[task] for number, own in enumerate(items) for task in metrics}

    numbers = range(len(names))
    lower = {f"{task}/{n}" for task, metric in metrics.items() if first[0].lower_is_better(metric) for n in numbers}
    weights = {f"{task}/{n}": first[0].weight(metric) for task, metric in metrics.items() for n in numbers}
    for own in zip(*(record.baselines for record in first), strict=False):
        lines.append(_row([own[0].name, *means(own), "", ""]))
    base = [_best(record) for record in first]
    for label, each in records.items():
        best = [_best(record) for record in each]
        outcome = ["", ""]
        if label != reference:
            tested = compare(strata(best), strata(base), lower_is_better=lower, weights=weights)
            outcome = [f"{tested.difference:+.3f}", p_text(tested.p_value)]
        lines.append(_row([label, *means(best), *outcome]))
    return "\n".join(lines)


def _best(record: RunRecord) -> Scored:
    if record.best is None or record.split != "held_out":
        do = "search with held-out items, to the end"
        raise ConfigError(f"run {record.folder.path} has no winner scored on held-out items", "finished runs", do)
    return record.best


def _items(model: Scored, metrics: Mapping[str, str]) -> dict[str, Floats]:
    return {task: model.evaluation.items[metric] for task, metric in metrics.items()}


def _tested(own: RunRecord, other: RunRecord, metrics: Mapping[str, str]) -> Comparison:
    lower = {task for task, metric in metrics.items() if other.lower_is_better(metric)}
    weights = {task: other.weight(metric) for task, metric in metrics.items()}
    return compare(_items(_best(own), metrics), _items(_best(other), metrics), lower_is_better=lower, weights=weights)


def _values(model: Scored, metrics: Mapping[str, str], record: RunRecord) -> list[float]:
    """The scores, and their mean by the weights that the fitness of `record` declared."""
    found = [model.evaluation.metrics[metric] for metric in metrics.values()]
    return [*found, float(np.average(found, weights=[record.weight(metric) for metric in metrics.values()]))]


def _scores(
    name: str, model: Scored, metrics: Mapping[str, str], record: RunRecord, tested: Comparison | None = None
) -> str:
    outcome = ["", ""] if tested is None else [f"{tested.difference:+.3f}", p_text(tested.p_value)]
    return _row([name, *(f"{value:.3f}" for value in _values(model, metrics, record)), *outcome])


def _together(label: str, own: Sequence[RunRecord], reference: Sequence[RunRecord], metrics: Mapping[str, str]) -> str:
    """Means over runs. The runs answer the same items, so that an item counts once, with its mean over runs."""
    values = [_values(_best(record), metrics, reference[0]) for record in own]
    means = [f"{sum(column) / len(column):.3f}" for column in zip(*values, strict=True)]
    name = f"{label}, all {len(own)}"
    if own is reference:
        return _row([name, *means, "", ""])
    lower = {task for task, metric in metrics.items() if reference[0].lower_is_better(metric)}
    weights = {task: reference[0].weight(metric) for task, metric in metrics.items()}
    tested = compare(_mean_items(own, metrics), _mean_items(reference, metrics), lower_is_better=lower, weights=weights)
    return _row([name, *means, f"{tested.difference:+.3f}", p_text(tested.p_value)])


def _mean_items(records: Sequence[RunRecord], metrics: Mapping[str, str]) -> dict[str, Floats]:
    items = [_items(_best(record), metrics) for record in records]
    return {task: np.mean([found[task] for found in items], axis=0) for task in metrics}


def _short(names: Sequence[str]) -> list[str]:
    """Names without the words that all of them begin and end with."""
    words = [name.split("_") for name in names]
    while len(words) > 1 and all(len(own) > 1 and own[0] == words[0][0] for own in words):
        words = [own[1:] for own in words]
    while len(words) > 1 and all(len(own) > 1 and own[-1] == words[0][-1] for own in words):
        words = [own[:-1] for own in words]
    return ["_".join(own) for own in words]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def best_so_far(run: Path) -> Floats:
    """The best mean of every task's first metric until each evaluation, in the order told; NaN before the first."""
    trials = read_history(run).trials
    first: dict[str, str] = {}
    for metric in next((trial.metrics for trial in trials if trial.metrics), {}):
        first.setdefault(task_name(metric), metric)
    means = [np.mean([trial.metrics.get(metric, np.nan) for metric in first.values()]) for trial in trials]
    return np.fmax.accumulate(np.array(means, dtype=np.float64))


def items_scored(runs: Mapping[str, Sequence[Path]]) -> str:
    """How many items candidates were scored on, finalists included and baselines not; empty where none were raced."""
    histories = {label: [read_history(folder) for folder in folders] for label, folders in runs.items()}
    whole = max((t.race.get("of", 0.0) for own in histories.values() for h in own for t in h.trials), default=0.0)
    if not whole:
        return ""
    means = {}
    for label, own in histories.items():
        told = [trial for history in own for trial in (*history.trials, *history.validated.values())]
        means[label] = sum(t.race.get("items", whole) for t in told if t.objectives) / len(own)
    first = next(iter(means.values()))
    each = ", ".join(f"{label} {round(mean):,} ({mean / first:.1%})" for label, mean in means.items())
    return f"\nItems that a search scored candidates on, finalists included: {each}."


def figure(runs: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Draw the curves of `best_so_far`, a line for every label."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "evomerge"  # the same file for the same curves
    drawing, axis = pyplot.subplots(figsize=(8, 4.5))
    for number, (label, folders) in enumerate(runs.items()):
        curves = [best_so_far(folder) for folder in folders]
        length = min(map(len, curves))
        values, x = np.array([curve[:length] for curve in curves]), np.arange(1, length + 1)
        colour, style = f"C{number % 10}", ("-", "--")[number // 5 % 2]
        axis.plot(x, values.mean(axis=0), style, color=colour, label=label, linewidth=1.3)
        axis.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.08, linewidth=0)
    axis.set(xlabel="evaluations", ylabel="best mean on the search items so far")
    axis.legend(fontsize=8, ncols=2, loc="lower right")
    drawing.tight_layout()
    drawing.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _on_landscape(options: argparse.Namespace, folder: Path) -> str:
    """Run the searches, and say how they did; draw them where that is asked for."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from scripts.landscape_searches import landscape_table, parse_searches, run_all

    budgets = [int(word) if word.isdigit() else 0 for word in options.budgets.split(",")]
    if min(budgets) < 1 or options.seeds < 1:
        raise ConfigError(f"--budgets {options.budgets} --seeds {options.seeds}", "numbers from 1, with commas between")
    searches = parse_searches(options.runs)
    runs = run_all(options.landscape, searches, options.seeds, max(budgets), folder)
    if options.figure is not None:
        figure(runs, options.figure)
    return landscape_table(options.landscape, runs, budgets)


def _on_pools(options: argparse.Namespace, folder: Path) -> str:
    """Run the searches on the pools, and say how they did; draw them where that is asked for."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from scripts.landscape_searches import parse_searches

    names = [pool.name for pool in options.pools]
    if len(set(names)) < len(names):
        raise ConfigError(f"--pools {' '.join(map(str, options.pools))}", "folders of other names: runs have them")
    runs = run_on_pools(options.pools, parse_searches(options.runs), shlex.split(options.overrides), folder)
    if options.figure is not None:
        figure(runs, options.figure)
    return pools_table(runs, names) + items_scored(runs)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="Print the held-out scores of searches side by side.")
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN", help="a run folder and the name of its search")
    parser.add_argument("--figure", type=Path, help="also draw the searches' progress to this file")
    parser.add_argument("--landscape", type=Path, help="search on this landscape: STRATEGY or LABEL=OVERRIDES")
    parser.add_argument("--seeds", type=int, default=10, help="searches of each kind on a landscape (default: 10)")
    parser.add_argument("--budgets", default="50,100,200", help="evaluations to compare after (default: 50,100,200)")
    parser.add_argument("--pools", nargs="+", type=Path, help="search on these demo pools: STRATEGY or LABEL=OVERRIDES")
    parser.add_argument("--overrides", default="", help="of all searches on pools: 'KEY=VALUE KEY=VALUE'")
    parser.add_argument(
        "--runs", type=Path, dest="folder", help="keep the searches on a landscape or on pools in this folder"
    )
    options = parser.parse_args(arguments)
    try:
        if options.landscape is not None or options.pools is not None:
            searched = _on_landscape if options.landscape is not None else _on_pools
            with TemporaryDirectory() as temporary:
                print(searched(options, options.folder or Path(temporary)))
            return 0
        runs = parse_runs(options.runs)
        print(table(runs) + items_scored(runs))
        if options.figure is not None:
            figure(runs, options.figure)
    except EvomergeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a search finds that is shown no label: `python scripts/unlabelled_winners.py FOLDER POOL [POOL ...]`.

Pools are the demo's, one for every seed. CMA-ES searches `search_space=by_layer` by each metric of `fitness=unlabelled`
alone, on texts of the specialists' own search tasks (none of the task that needs both), and the winner is scored on the
held-out items. Beside them are the same search by right answers, of all three tasks, on as many evaluations, and one of
twice as many candidates, of which a cheap rung without labels lets half go on: as many are scored by right answers.
What is in the folder already is not done again.

    python scripts/unlabelled_winners.py runs/unlabelled demo_pool/seed{0,1,2}
    python scripts/unlabelled_winners.py runs/unlabelled demo_pool/seed{0,1,2} --table   # of what is there
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evomerge.api.run import Run
from evomerge.api.searching import search
from evomerge.errors import ConfigError, EvomergeError, nearest
from evomerge.recipes.pool_info import UNIFORM
from evomerge.recipes.yaml_reader import read_recipe_file
from evomerge.report.history import read_history
from evomerge.session.best_recipe import best_recipe
from scripts.operator_table import TASKS, Series, against, mean, read_scores

METRICS = {
    "soft_cross_entropy": "[soft_cross_entropy]",
    "expert_merging": "{soft_cross_entropy: 1.0, hidden_distance: 0.1}",
    "perplexity": "{perplexity: {transform: log}}",
    "agreement": "[agreement]",
    "hidden_distance": "[hidden_distance]",
    "entropy": "[entropy]",
}
"""What a search maximises, by name: on what the experts answer, but `entropy`, which is of prompts."""
LABELS, RUNG = "labels", "labels after a cheap rung"
"""The searches by right answers."""


class Winners(Series):
    """The winners of a pool.

    Args:
        folder, root, evaluations, limit: as of `Series`.
    """

    def __init__(self, folder: Path, root: Path, evaluations: int, limit: int) -> None:
        super().__init__(folder, root, evaluations, limit, [])
        self._own, self._pool_root, self._texts = folder / root.name, root, limit
        self._each = evaluations

    def do(self, name: str) -> None:
        """Search by a metric, by `LABELS` or `RUNG`, and score the winner; what is there already is kept."""
        if not self.score(name).is_file():
            self._keep(name, read_recipe_file(best_recipe(self._found(name))))

    def _found(self, name: str) -> Path:
        run = self._own / name
        if run.exists() and read_history(run).stopped is None:
            Run(run).resume(display="quiet")
        elif not run.exists():
            evaluations = self._each * (2 if name == RUNG else 1)
            words = ["fitness@held_out=null", "search.baselines=false", "search.racing.first=null"]
            words += [f"search.evaluations={evaluations}"]
            search(*self._by(name), *words, f"pool.root='{self._pool_root}'", f"run_dir='{run}'", display="quiet")
        return run

    def _by(self, name: str) -> list[str]:
        labels = ["experiment=demo", f"fitness.limit={self._texts}"]
        if name == LABELS:
            return labels
        if name == RUNG:
            return [*labels, "fitness@cheap=unlabelled", *self._metric("perplexity", "cheap")]
        parts = ["pool=demo", "search_space=by_layer", "strategy=cma_es", "fitness=unlabelled"]
        return [*parts, *self._metric(name, "fitness")]

    def _metric(self, name: str, node: str) -> list[str]:
        """The keys of a fitness without labels."""
        write = ", write: {by: %s, tokens: 12, temperature: 0}" if name != "entropy" else ""
        texts = ", ".join(
            f"{model}: {{task: {task}, limit: {self._texts}, expert: {model}{write and write % model}}}"
            for model, task in TASKS.items()
        )
        return [
            f"{node}.include_path='{self._pool_root}/tasks'",
            f"{node}.texts={{{texts}}}",
            f"{node}.metrics={METRICS[name]}",
        ]


def table(series: Sequence[Winners]) -> str:
    """The Markdown table: held-out accuracies by pool, and each metric's winners against those of labels."""
    lines = ["| searched by | mean | by pool | against labels |", "| --- | ---: | --- | --- |"]
    for name in ("base", UNIFORM, *METRICS, LABELS, RUNG):
        there = [each for each in series if each.score(name).is_file()]
        if not there:
            continue
        found = [read_scores(each.score(name)) for each in there]
        gain = ""
        if name in (*METRICS, RUNG) and all(each.score(LABELS).is_file() for each in there):
            gain = against(found, [read_scores(each.score(LABELS)) for each in there])
        shown = f"`{name}`" if name in METRICS else name
        by_pool = ", ".join(f"{mean(own):.3f}" for own in found)
        lines.append(f"| {shown} | {np.mean([mean(own) for own in found]):.3f} ({len(found)}) | {by_pool} | {gain} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="Winners of searches without labels on the demo's pools.")
    parser.add_argument("folder", type=Path, help="where runs and scores go")
    parser.add_argument("pools", nargs="+", type=Path, metavar="POOL", help="folders of demo pools")
    parser.add_argument("--evaluations", type=int, default=150, help="of a search (default: 150)")
    parser.add_argument("--limit", type=int, default=100, help="items of a task that a search sees (default: 100)")
    parser.add_argument("--metrics", default=",".join(METRICS), help="some of them, with commas between")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args(arguments)
    series = [Winners(options.folder, pool, options.evaluations, options.limit) for pool in options.pools]
    try:
        names = options.metrics.split(",")
        for name in names:
            if name not in METRICS:
                raise ConfigError(f"--metrics has {name!r}", nearest(name, METRICS))
        for own in () if options.table else series:
            own.baselines()
            for name in (LABELS, RUNG, *names):
                own.do(name)
        print(table(series))
    except EvomergeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

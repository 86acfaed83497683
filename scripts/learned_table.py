"""What learning by gradients is worth, alone and as a start: `python scripts/learned_table.py FOLDER POOL [POOL ...]`.

Pools are the demo's, one for every seed. Each method of `evomerge learn`, and `evomerge frank-wolfe` on `FEW` items of
each source, learns on the items of the specialists' own search tasks (none on the task that needs both), and is scored
on the held-out items as it is, and tuned by CMA-ES in `--evaluations` evaluations: the weights by layer from what was
learnt, the factors on masks and columns from 1. Task arithmetic from its usual start has the same budget. What is in
the folder already is not done again.

    python scripts/learned_table.py runs/learned demo_pool/seed{0,1,2}
    python scripts/learned_table.py runs/learned demo_pool/seed{0,1,2} --table   # of what is there
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evomerge.cli.main import main as evomerge
from evomerge.config.compose import compose_config
from evomerge.errors import ConfigError, EvomergeError, nearest
from evomerge.evaluation.worker import Worker
from evomerge.models.opening import with_statistics
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import read_recipe_file
from evomerge.session.best_recipe import best_recipe
from evomerge.session.builders import fitness_from_config
from scripts.operator_table import COMPONENTS, Series, against, mean, read_scores

FRANK_WOLFE = "frank_wolfe"
METHODS = ("expert_merging", "adamerging", FRANK_WOLFE, "dam", "concrete")
FEW = 64  # its gradients are of whole passes over the items
USUAL = "task_arithmetic"
READ_BY = {"dam": "columns", "concrete": "masked"}


class Learned(Series):
    """The scores of a pool.

    Args:
        folder, root, evaluations, limit: as of `Series`.
        steps: of learning.
    """

    def __init__(self, folder: Path, root: Path, evaluations: int, limit: int, steps: int) -> None:
        super().__init__(folder, root, evaluations, limit)
        self._own, self._pool_root = folder / root.name, root
        self._budget = [f"search.evaluations={evaluations}", f"fitness.limit={limit}"]
        self._steps = steps

    def learn(self, method: str) -> Path:
        """The recipe of what a method learns."""
        out, tasks = self._own / f"{method}.yaml", self._pool_root / "tasks"
        out.parent.mkdir(parents=True, exist_ok=True)
        if not out.is_file():
            items = [f"calibration.include_path='{tasks}'", "calibration.split=scored", "calibration=lm_eval"]
            items += ["calibration.tasks={math: [demo_e_maths], lang: [demo_j_language]}"]
            how = [f"learning.method={method}", f"learning.steps={self._steps}", f"learning.out='{out}'"]
            if method == FRANK_WOLFE:
                self._run(FRANK_WOLFE.replace("_", "-"), [*items, f"calibration.items={FEW}"], str(out))
            else:
                self._run("learn", [*items, *how])
        return out

    def untuned(self, method: str) -> None:
        """Score what was learnt."""
        if not self.score(f"untuned-{method}").is_file():
            self._keep(f"untuned-{method}", read_recipe_file(self.learn(method)))

    def tuned(self, method: str) -> None:
        """Search from what was learnt, or for `USUAL` from the usual start, and score the winner."""
        if self.score(f"tuned-{method}").is_file():
            return
        run = self._own / f"search-{method}"
        words = [*self._budget, "fitness@held_out=null", "search.baselines=false", "search.racing.first=null"]
        words += ["display=quiet", f"run_dir='{run}'"]
        if method in READ_BY:
            words += ["search_space=parameter", f"search_space.method={READ_BY[method]}"]
            words += ["search_space.layer_group=layer", f"search_space.components={COMPONENTS}"]
            words += [f"statistics.learned='{self.learn(method)}'"]
        elif method != USUAL:
            words += [f"search.warm_start=['{self.learn(method)}']"]
        if run.exists():
            evomerge(["resume", str(run), "display=quiet"])
        else:
            self._run("search", words)
        self._keep(f"tuned-{method}", read_recipe_file(best_recipe(run)))

    def _keep(self, name: str, recipe: Recipe) -> None:
        pool = with_statistics(self._opened(), recipe.calibration)
        config = compose_config(["experiment=demo", f"pool.root='{self._pool_root}'"])
        self._worker = Worker(pool, {"held_out": fitness_from_config(config, "held_out")})
        super()._keep(name, recipe)

    def _run(self, verb: str, words: Sequence[str], *places: str) -> None:
        if evomerge([verb, *places, "experiment=demo", f"pool.root='{self._pool_root}'", *words]):
            raise EvomergeError(f"evomerge {verb} of {self._pool_root} did not end well", "", "see above")


def table(series: Sequence[Learned]) -> str:
    """The Markdown table of the pools that have all: means, by pool, and each against the usual search."""
    lines = [
        "| method | untuned | tuned | by pool, tuned | against the usual start |",
        "| --- | ---: | ---: | --- | --- |",
    ]
    for method in (USUAL, *METHODS):
        found = {
            kind: [read_scores(path) for each in series if (path := each.score(f"{kind}-{method}")).is_file()]
            for kind in ("untuned", "tuned")
        }
        cells = [f"{np.mean([mean(own) for own in found[k]]):.3f} ({len(found[k])})" if found[k] else "" for k in found]
        by_pool = ", ".join(f"{mean(own):.3f}" for own in found["tuned"])
        both = [
            (each.score(f"tuned-{method}"), each.score(f"tuned-{USUAL}"))
            for each in series
            if each.score(f"tuned-{method}").is_file() and each.score(f"tuned-{USUAL}").is_file()
        ]
        gain = ""
        if both and method != USUAL:
            gain = against(*([read_scores(pair[at]) for pair in both] for at in (0, 1)))
        lines.append(f"| `{method}` | {cells[0]} | {cells[1]} | {by_pool} | {gain} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="Learning by gradients on the demo's pools, and tuning from there.")
    parser.add_argument("folder", type=Path, help="where runs and scores go")
    parser.add_argument("pools", nargs="+", type=Path, metavar="POOL", help="folders of demo pools")
    parser.add_argument("--evaluations", type=int, default=150, help="of a search (default: 150)")
    parser.add_argument("--limit", type=int, default=100, help="items of a task that a search sees (default: 100)")
    parser.add_argument("--steps", type=int, default=200, help="of learning (default: 200)")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of them, with commas between")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args(arguments)
    series = [
        Learned(options.folder, pool, options.evaluations, options.limit, options.steps) for pool in options.pools
    ]
    try:
        methods = options.methods.split(",")
        for method in methods:
            if method not in METHODS:
                raise ConfigError(f"--methods has {method!r}", nearest(method, METHODS))
        for own in () if options.table else series:
            for method in methods:
                own.untuned(method)
            for method in (USUAL, *methods):
                own.tuned(method)
        print(table(series))
    except EvomergeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What fronts are worth on held-out items: `python scripts/front_held_out.py RUN ...`, runs on one pool.

The first run has several objectives and a held-out fitness, by which all are scored: the sources, and every recipe of
each run's Pareto front; of a run with one objective the winner alone. The hypervolume is that above the worst of the
sources in every objective. The mean is that of the held-out tasks, of the recipe whose objectives have the best mean on
the items of the search, as all runs could choose.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml

from evomerge.candidate import Candidate, Evaluation
from evomerge.config.schema import Config
from evomerge.evaluation.worker import Worker
from evomerge.objectives import ParetoArchive
from evomerge.recipes.pool_info import baseline_recipes
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import read_recipe_file
from evomerge.run.folder import RunFolder
from evomerge.session.builders import fitness_from_config
from evomerge.session.pools import pool_from_config
from evomerge.session.resume import read_config


def recipes_of(run: RunFolder) -> list[tuple[Recipe, Mapping[str, float]]]:
    """The recipes of a run's front with what they had in the search, or its winner."""
    if not run.pareto.is_file():
        return [(read_recipe_file(run.best_recipe, str(run.best_recipe)), {})]
    entries = yaml.safe_load(run.pareto.read_text())["front"]
    files = [(run.pareto.parent / entry["recipe"], entry["objectives"]) for entry in entries]
    return [(read_recipe_file(file, str(file)), objectives) for file, objectives in files]


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()
    config: Any = read_config(RunFolder.open(options.runs[0]))
    fitness = fitness_from_config(cast(Config, config), "held_out")
    fitness.check()
    pool = pool_from_config(cast(Config, config))
    worker = Worker(pool, {"held_out": fitness}, threads=1)
    known: dict[str, Evaluation] = {}

    def scored(recipe: Recipe) -> Evaluation:
        if recipe.hash not in known:
            known[recipe.hash] = worker.evaluate(Candidate(len(known), recipe), "held_out")
        return known[recipe.hash]

    sources = [scored(recipe).objectives for recipe in baseline_recipes(pool.info).values()]
    worst = {o.name: min((each[o.name] for each in sources), key=o.gain) for o in fitness.objectives}
    for path in options.runs:
        found = recipes_of(RunFolder.open(path))
        archive = ParetoArchive(fitness.objectives)
        for number, (recipe, _) in enumerate(found):
            archive.add(number, scored(recipe).objectives)
        best = max(found, key=lambda pair: float(np.mean(list(pair[1].values()) or [0.0])))
        metrics = [value for name, value in scored(best[0]).metrics.items() if name.endswith("/acc")]
        volume, mean = archive.hypervolume(worst), float(np.mean(metrics))
        print(f"{path.name}: front {len(found)}, hypervolume {volume:.4f}, mean {mean:.4f}", flush=True)


if __name__ == "__main__":
    main()

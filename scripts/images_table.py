"""Ways to merge the demo's image classifiers, on held-out images: `python scripts/images_table.py FOLDER POOL`.

The pool is that of ``evomerge demo --images --pool-only``. Of its eight ViTs: each alone on its own task, the base, the
uniform average, task arithmetic and TIES with the scale that is best on the search's images, and CMA-ES on the same
images. Of its four ResNets: averages with and without batch-norm statistics computed again. Tests are paired,
image by image. What is in the folder already is not done again.

    python scripts/images_table.py runs/images demo_pool/images0
    python scripts/images_table.py runs/images demo_pool/images0 --only resnet
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evomerge.candidate import Candidate
from evomerge.cli.main import main as evomerge
from evomerge.config.compose import compose_config
from evomerge.config.schema import Config
from evomerge.errors import EvomergeError
from evomerge.evaluation.worker import Worker
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe, parameters
from evomerge.recipes.yaml_reader import read_recipe_file
from evomerge.report.formatting import p_text
from evomerge.report.statistics import Floats, compare
from evomerge.session.best_recipe import best_recipe
from evomerge.session.builders import fitness_from_config
from evomerge.session.pools import pool_from_config

SCALES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
_EVALUATIONS = {"vit": 160, "resnet": 100}
DENSITY = 0.2
"""Of TIES, as its paper has it (arXiv 2306.01708)."""


@dataclass
class Scored:
    """A pool whose merges are scored.

    Args:
        folder: where scores and runs are kept.
        words: the configuration.
        name: of the pool, in file names.
    """

    folder: Path
    words: Sequence[str]
    name: str

    def __post_init__(self) -> None:
        self.config: Config = compose_config(list(self.words))
        self.pool = pool_from_config(self.config)
        self._worker: Worker | None = None

    @property
    def info(self) -> PoolInfo:
        """Of the pool."""
        return self.pool.info

    def scores(self, what: str, recipe: Recipe | Callable[[], Recipe], split: str) -> dict[str, Floats]:
        """By task the accuracy of every image."""
        path = self.folder / f"{self.name}-{what}-{split}.json"
        if not path.is_file():
            if self._worker is None:
                fitnesses = {"search": "fitness", "held_out": "held_out"}
                built = {own: fitness_from_config(self.config, key) for own, key in fitnesses.items()}
                self._worker = Worker(self.pool, built, device="cpu")  # type: ignore[arg-type]
            made = recipe() if callable(recipe) else recipe
            found = self._worker.evaluate(Candidate(0, made), split)  # type: ignore[arg-type]
            if not found.ok:
                raise EvomergeError(f"{self.name}, {what}: {found.error}")
            items = {name.partition("/")[0]: own for name, own in found.items.items() if name.endswith("/accuracy")}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({name: own.tolist() for name, own in items.items()}))
        return {name: np.array(own) for name, own in json.loads(path.read_text()).items()}

    def scaled(self, method: str, scale: float) -> Recipe:
        """Every source with the same weight."""
        inputs = tuple(Input(name, None, parameters({"weight": scale})) for name in self.info.sources if name != "base")
        more = {"density": DENSITY} if method == "ties" else {}
        if method == "ties":
            inputs = tuple(Input(own.model, None, parameters({"weight": scale, **more})) for own in inputs)
        fixed = parameters({"normalize": False}) if method == "ties" else ()
        return self.info.recipe(SliceRecipe(s, method, inputs, fixed, Input("base")) for s in self.info.slices)

    def best_scale(self, method: str) -> tuple[float, Recipe]:
        """The scale with the best mean accuracy on the search's images."""
        means = {
            scale: mean(self.scores(f"{method}-{scale}", self.scaled(method, scale), "search")) for scale in SCALES
        }
        best = max(means, key=lambda scale: means[scale])
        return best, self.scaled(method, best)

    def uniform(self) -> Recipe:
        """The average of the sources."""
        names = [name for name in self.info.sources if name != "base"]
        return self.info.linear({name: 1 / len(names) for name in names})

    def tuned(self, evaluations: int) -> Recipe:
        """What CMA-ES finds."""
        run = self.folder / f"{self.name}-search"
        words = [*self.words, f"search.evaluations={evaluations}", "display=quiet", f"run_dir='{run}'"]
        status = evomerge(["resume", str(run), "display=quiet"] if run.exists() else ["search", *words])
        if status:
            raise EvomergeError(f"the search in {run} did not end well", "", "see above")
        return read_recipe_file(best_recipe(run))


def mean(scores: Mapping[str, Floats]) -> float:
    """Of the tasks' accuracies."""
    return float(np.mean([own.mean() for own in scores.values()]))


def row(what: str, scores: Mapping[str, Floats], *against: Mapping[str, Floats]) -> str:
    """A line of a table: accuracies in percent, their mean, and p against others."""
    cells = [f"{100 * own.mean():.1f}" for own in scores.values()]
    tests = [p_text(compare(dict(scores), dict(other)).p_value) if other is not scores else "" for other in against]
    return f"| {what} | {' | '.join(cells)} | {100 * mean(scores):.1f} | {' | '.join(tests)} |"


def head(tasks: Sequence[str], *against: str) -> list[str]:
    """The first two lines of a table."""
    names = ["merge", *tasks, "mean", *(f"p against {name}" for name in against)]
    return [f"| {' | '.join(names)} |", f"| --- |{' ---: |' * (len(names) - 1)}"]


def vits(pool: Scored, evaluations: int) -> list[str]:
    """The table of the ViTs."""
    held = {"uniform average": pool.scores("uniform", pool.uniform(), "held_out")}
    for method, name in (("task_arithmetic", "task arithmetic"), ("ties", "TIES")):
        scale, recipe = pool.best_scale(method)
        held[f"{name}, scale {scale}"] = pool.scores(f"{method}-{scale}", recipe, "held_out")
    held[f"CMA-ES, {evaluations} evaluations"] = pool.scores("tuned", lambda: pool.tuned(evaluations), "held_out")
    base = pool.scores("base", pool.info.linear({"base": 1.0}), "held_out")
    own = {task: pool.scores(task, pool.info.linear({task: 1.0}), "held_out")[task] for task in base}
    uniform = held["uniform average"]
    fixed = [name for name in held if "scale" in name]
    best = held[max(fixed, key=lambda name: mean(held[name]))]
    lines = head(list(base), "the average", "the better scale")
    lines += [row("each on its own task", own, own, own), row("base", base, base, base)]
    return lines + [row(name, scores, uniform, best) for name, scores in held.items()]


def resnets(computed: Scored, merged: Scored, evaluations: int) -> list[str]:
    """The table of the ResNets: statistics computed again, and as they are merged; without a search for none."""
    recipe = computed.uniform()
    after = computed.scores("uniform", recipe, "held_out")
    before = merged.scores("uniform", recipe, "held_out")
    lines = head(list(after), "as merged")
    own = {task: computed.scores(task, computed.info.linear({task: 1.0}), "held_out")[task] for task in after}
    base = computed.scores("base", computed.info.linear({"base": 1.0}), "held_out")
    lines += [row("each on its own task", own, own), row("base", base, base)]
    lines += [row("uniform average, statistics as merged", before, before)]
    lines += [row("uniform average, computed again", after, before)]
    for scale in (0.5, 0.8):
        again = computed.scores(f"ta-{scale}", computed.scaled("task_arithmetic", scale), "held_out")
        try:
            plain = merged.scores(f"ta-{scale}", merged.scaled("task_arithmetic", scale), "held_out")
            lines += [row(f"task arithmetic {scale}, as merged", plain, plain)]
        except EvomergeError as error:  # a variance may well be negative
            if "not finite" not in error.given:
                raise
            plain = again
            lines += [f"| task arithmetic {scale}, as merged | outputs are not finite {'| ' * len(again)}| |"]
        lines += [row(f"task arithmetic {scale}, computed again", again, plain)]
    if not evaluations:
        return lines
    found = [own.scores("tuned", lambda: computed.tuned(evaluations), "held_out") for own in (merged, computed)]
    lines += [row(f"CMA-ES, {evaluations} evaluations, as merged", found[0], found[0])]
    lines += [row(f"CMA-ES, {evaluations} evaluations, computed again", found[1], found[0])]
    p = p_text(compare(found[1], after).p_value)
    return [*lines, "", f"The last against the uniform average, computed again: p = {p}."]


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description="Merges of the demo's image classifiers on held-out images.")
    parser.add_argument("folder", type=Path, help="where runs and scores go")
    parser.add_argument("pool", type=Path, metavar="POOL", help="folder of the demo's image classifiers")
    parser.add_argument(
        "--evaluations", type=int, help="of each search (default: 160 and 100; 0: no search of ResNets)"
    )
    parser.add_argument("--only", choices=("vit", "resnet"), help="one of the two tables")
    options = parser.parse_args(arguments)
    given = options.evaluations
    evaluations = {name: own if given is None else given for name, own in _EVALUATIONS.items()}
    root = [f"pool.root='{options.pool}'", "evaluator.device=cpu"]
    try:
        if options.only != "resnet":
            own = Scored(options.folder, ["experiment=demo_images", *root], "vit")
            print("\n".join(vits(own, evaluations["vit"])) + "\n")
        if options.only == "vit":
            return 0
        pair = [
            Scored(options.folder, ["experiment=demo_resnets", *root, f"fitness.batch_norm={flag}"], f"resnet-{name}")
            for name, flag in (("computed", "true"), ("merged", "false"))
        ]
        print("\n".join(resnets(pair[0], pair[1], evaluations["resnet"])))
    except EvomergeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

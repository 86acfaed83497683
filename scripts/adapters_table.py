"""Searches over a demo's adapters, beside their uniform average and the best of them, on held-out items.

`python scripts/adapters_table.py [--root demo_pool/seed0] [--seeds 3] [--evaluations 300]` runs Evo-Merging
(`experiment=demo_adapters`), the same with sums of factors as published, and CMA-ES over one weight for each adapter
(`task_arithmetic`), with the same evaluations on the same items. The best adapter is the one that is best on these.
Prints a Markdown table with paired tests, and candidates in an hour of the processor's time; then the first system
against each of the others, seed by seed and in the mean of seeds, and the process's peak. With `--folder` searches that
are there already are kept, without their hours, and what was stopped goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evomerge.api.run import Run
from evomerge.candidate import Candidate, Evaluation
from evomerge.config.compose import compose_config
from evomerge.errors import EvomergeError
from evomerge.protocols import Evaluator
from evomerge.recipes.pool_info import UNIFORM
from evomerge.recipes.yaml_reader import read_recipe_file
from evomerge.report.formatting import p_text
from evomerge.report.history import read_history
from evomerge.report.statistics import Floats, compare
from evomerge.search.starts import compared_recipes
from evomerge.session.parts import build_parts
from evomerge.session.run import run as run_search

PLAIN = (
    "search_space=task_arithmetic",
    "phases=null",
    "search.penalty=0",
    "strategy.sigma0=0.05",
    "strategy.popsize=20",
)
SYSTEMS: Mapping[str, Sequence[str]] = {
    "Evo-Merging": (),
    "as published": ("search_space.parameters.cross=true",),
    "CMA-ES, weights": (*PLAIN, "search_space.layer_group=all"),
}
HEAD = ("", "search", "held out", "over uniform", "over the best adapter", "candidates an hour")

Scores = Mapping[str, Floats]
"""By task, what one model got on each item."""


def mean_of(scores: Scores) -> float:
    """The mean over tasks of their means."""
    return float(np.mean([values.mean() for values in scores.values()]))


def evaluated(evaluator: Evaluator, recipes: Mapping[str, Any], split: Any, first: int) -> dict[str, Evaluation]:
    """Evaluations of models by name, one after the other."""
    found = {}
    for number, (name, recipe) in enumerate(recipes.items()):
        evaluator.submit(Candidate(first + number, recipe, name=name), split)
        found[name] = evaluator.collect()
    return found


def exact(evaluation: Evaluation) -> Scores:
    """Of an evaluation, by task, whether each item's answer is right."""
    return {name: values for name, values in evaluation.items.items() if name.endswith("/acc")}


def peak() -> float:
    """The process's largest resident set so far, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def compared(label: str, found: Scores, others: Sequence[Scores], search: str = "", speed: str = "") -> str:
    """A row of the table."""
    cells = [label, search, f"{mean_of(found):.3f}"]
    for other in others:
        tested = compare(found, other)
        cells.append(f"{tested.difference:+.3f} ({p_text(tested.p_value)})")
    return line([*cells, speed])


def means_of(every: Sequence[Scores]) -> Scores:
    """By task, of each item the mean over seeds."""
    return {task: np.mean([own[task] for own in every], axis=0) for task in every[0]}


def searched_in(words: Sequence[str], run_dir: Path) -> str:
    """Search, or go on with what was stopped; returns the candidates in an hour, empty where not all were run here."""
    if run_dir.exists():
        if read_history(run_dir).stopped is None:
            Run(run_dir).resume(display="quiet")
        return ""
    config = compose_config(list(words))
    parts = build_parts(config)
    parts.held_out = None
    begun = time.process_time()
    run_search(config, parts)
    return f"{config.search.evaluations / (time.process_time() - begun) * 3600:,.0f}"


def table(words: Sequence[str], systems: Sequence[str], seeds: int, folder: Path) -> None:
    """Run the searches, and print the table row by row."""
    scoring = build_parts(compose_config([*words, f"run_dir='{folder / 'scoring'}'"]))
    assert scoring.pool is not None
    models = compared_recipes(scoring.pool.info, scoring.space)
    searched = evaluated(scoring.evaluator, models, "search", 0)
    apart = [name for name in models if name not in (UNIFORM, scoring.pool.info.base)]
    best = max(apart, key=lambda name: searched[name].objectives["score"])
    named = {name: models[name] for name in (UNIFORM, best)}
    base = {name: exact(own) for name, own in evaluated(scoring.evaluator, named, "held_out", 1000).items()}
    print("\n".join([line(HEAD), line(["---"] * len(HEAD))]))
    for name, own in base.items():
        print(line([name, f"{searched[name].objectives['score']:.3f}", f"{mean_of(own):.3f}", "", "", ""]), flush=True)
    all_scores: dict[str, list[Scores]] = {}
    for label in systems:
        every = all_scores.setdefault(label, [])
        for seed in range(seeds):
            run_dir = folder / f"{label.replace(', ', '-').replace(' ', '-')}-{seed}"
            own_words = [*words, *SYSTEMS[label], f"search.seed={seed}", "search.baselines=false"]
            rate = searched_in([*own_words, f"run_dir='{run_dir}'", "display=quiet"], run_dir)
            recipe = read_recipe_file(run_dir / "best" / "recipe.yaml", "the winner")
            winner = {f"{label} {seed}": recipe}
            scores = exact(evaluated(scoring.evaluator, winner, "held_out", 2000)[f"{label} {seed}"])
            found = evaluated(scoring.evaluator, winner, "search", 3000)[f"{label} {seed}"].objectives["score"]
            every.append(scores)
            print(compared(f"{label} {seed}", scores, [*base.values()], f"{found:.3f}", rate), flush=True)
        print(compared(f"{label}, all {seeds}", means_of(every), [*base.values()]), flush=True)
    first = systems[0]
    for label in systems[1:]:
        tested = [compare(a, b) for a, b in zip(all_scores[first], all_scores[label], strict=True)]
        tested.append(compare(means_of(all_scores[first]), means_of(all_scores[label])))
        said = [f"{one.difference:+.3f} ({p_text(one.p_value)})" for one in tested]
        print(f"\n{first} against {label}: {', '.join(said[:-1])}; of the means {said[-1]}.")
    print(f"\npeak of the process: {peak():,.0f} MB")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="Search a demo's adapters and print held-out scores.")
    parser.add_argument("--root", default="demo_pool/seed0", help="a demo pool with adapters")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=300, help="of each search (default: 300)")
    parser.add_argument("--items", type=int, default=125, help="of each task, searched on (default: 125)")
    parser.add_argument("--held-out", type=int, default=1000, help="of each task (default: 1000)")
    parser.add_argument(
        "--systems", default=",".join(SYSTEMS).replace("CMA-ES, weights", "CMA-ES"), help="some of them"
    )
    parser.add_argument("--folder", type=Path, help="keep the runs there")
    parser.add_argument("overrides", nargs="*", help="of all searches")
    given = parser.parse_intermixed_args(arguments)
    torch.set_num_threads(1)
    names = {name.partition(",")[0]: name for name in SYSTEMS}
    words = ["experiment=demo_adapters", f"pool.root='{given.root}'", f"search.evaluations={given.evaluations}"]
    words += [f"fitness.limit={given.items}", f"held_out.limit={given.held_out}", *given.overrides]
    try:
        with TemporaryDirectory() as temporary:
            table(
                words, [names[name] for name in given.systems.split(",")], given.seeds, given.folder or Path(temporary)
            )
    except EvomergeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How well MAP's fits tell what is measured, and how far its front comes: `python scripts/map_accuracy.py POOL ...`.

For each of the demo's pools (`evomerge demo --pool-only --seed 1` makes `demo_pool/seed1`) and each number of genes,
`strategy=map` and `strategy=nsga2`, and variants of MAP that `--strategies` names, search the three tasks as three
objectives with the same number of evaluations. Then
`--points` candidates drawn anew are evaluated and compared with what MAP's fits tell of them: Spearman's rank
correlation for each task, beside the R2 of held-back samples that a search can tell by itself. The hypervolumes are of
the fronts above the base model, and above the worst source of each task, on the search's items, and on the held-out
items of the candidates that are on it. `--seeds 0 1` searches with several seeds, all compared on the same candidates.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.config.compose import compose_config
from evomerge.evaluation.worker import Worker
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective, ParetoArchive
from evomerge.protocols import Fitness, SearchSpace, Strategy
from evomerge.recipes.pool_info import baseline_recipes
from evomerge.recipes.recipe import Recipe
from evomerge.session.builders import fitness_from_config, space_from_node
from evomerge.session.pools import pool_from_config
from evomerge.strategies.amortized_pareto import AmortizedPareto
from evomerge.strategies.bases.quadratic import held_back
from evomerge.strategies.nested_pareto import NestedPareto
from evomerge.strategies.optuna_samplers import Nsga2

TASKS = ("e_maths", "j_language", "j_maths")
OBJECTIVES = tuple(Objective(name) for name in TASKS)
BLOCKS = {2: "all", 6: 2}
"""By number of genes (two models), what `search_space.layer_group` is; embeddings and the rest go with layers."""

Evaluate = Callable[[Genome], Mapping[str, float]]
Told = list[tuple[Genome, Mapping[str, float]]]


def searched(strategy: Strategy, evaluate: Evaluate, evaluations: int) -> Told:
    """Every genome that a strategy asked for, and what it scored."""
    found: Told = []
    while len(found) < evaluations:
        for proposal in strategy.ask(1):
            scores, number = evaluate(proposal.genome), len(found)
            strategy.tell(Candidate(number, None, proposal.genome), Evaluation(number, "ok", objectives=scores))
            found.append((proposal.genome, scores))
    return found


def volume(points: Sequence[Mapping[str, float]], reference: Mapping[str, float]) -> float:
    """Of the front of these scores above a reference."""
    archive = ParetoArchive(OBJECTIVES)
    for number, scores in enumerate(points):
        archive.add(number, scores)
    return archive.hypervolume(reference)


def front(told: Told) -> list[Genome]:
    """The genomes that no other beats."""
    archive = ParetoArchive(OBJECTIVES)
    for number, (_, scores) in enumerate(told):
        archive.add(number, scores)
    return [told[number][0] for number in archive]


class Demo:
    """One pool, its search space of so many genes, and what candidates score."""

    def __init__(self, root: Path, genes: int, held_out: int | None = None) -> None:
        words = ["experiment=demo_map", f"pool.root='{root}'", f"search_space.layer_group={BLOCKS[genes]}"]
        if held_out is not None:
            words.append(f"held_out.limit={held_out}")
        if genes > 2:
            words.append("search_space.components=[[attn, mlp, norm]]")
        config = compose_config(words)
        pool = pool_from_config(config)
        self.space: SearchSpace = space_from_node(config.search_space, "search_space", pool.info)
        fitnesses: dict[Split, Fitness] = {
            "search": fitness_from_config(config, "fitness"),
            "held_out": fitness_from_config(config, "held_out"),
        }
        self.worker = Worker(pool, fitnesses, device="cpu", threads=1)
        self.known: dict[tuple[str, Split], Mapping[str, float]] = {}
        self.sources = [recipe for name, recipe in baseline_recipes(pool.info).items() if name in pool.info.sources]

    def scores(self, genome: Genome, split: Split = "search") -> Mapping[str, float]:
        """By task, of a split."""
        return self.scores_of(self.space.decode(genome), split)

    def worst(self, split: Split = "search") -> Mapping[str, float]:
        """By task, of a split: what the source scores that is worst at it."""
        found = [self.scores_of(recipe, split) for recipe in self.sources]
        return {task: min(each[task] for each in found) for task in TASKS}

    def scores_of(self, recipe: Recipe, split: Split) -> Mapping[str, float]:
        """By task, of a split; what was scored is not scored again."""
        if (recipe.hash, split) not in self.known:
            found = self.worker.evaluate(Candidate(0, recipe), split)
            if not found.ok:
                raise SystemExit(found.error)
            accuracy = {
                name.split("/")[0].removeprefix("demo_").removesuffix("_held_out"): value
                for name, value in found.metrics.items()
                if name.endswith("/acc")
            }
            self.known[recipe.hash, split] = {task: accuracy[task] for task in TASKS}
        return self.known[recipe.hash, split]


def rows(root: Path, genes: int, evaluations: int, options: argparse.Namespace) -> Iterator[str]:
    """A row of the table for each of the searches."""
    demo = Demo(root, genes, options.held_out)
    spec = demo.space.spec
    base = spec.genome([0.0] * len(spec))
    rng = np.random.default_rng([options.seeds[0], 1])
    fresh = [spec.sample(rng) for _ in range(options.points)]
    measured = np.array([[demo.scores(genome)[task] for task in TASKS] for genome in fresh])
    for seed in options.seeds:
        made: dict[str, Strategy] = {
            "map": AmortizedPareto(spec, OBJECTIVES, seed=seed),
            "bayesian": AmortizedPareto(spec, OBJECTIVES, seed=seed, sampling="bayesian"),
            "nested": NestedPareto(spec, OBJECTIVES, seed=seed),
            "nsga2": Nsga2(spec, OBJECTIVES, seed=seed, popsize=12),
        }
        for name in options.strategies:
            strategy = made[name]
            told = searched(strategy, demo.scores, evaluations)
            best = front(told)
            cells = [root.name, str(genes), name, str(seed), str(evaluations), str(len(best))]
            splits: tuple[Split, ...] = ("search", "held_out")
            for low in (partial(demo.scores, base), demo.worst):
                for split in splits:
                    cells.append(f"{volume([demo.scores(genome, split) for genome in best], low(split)):.4f}")
            if isinstance(strategy, AmortizedPareto):
                at = np.array([spec_point(spec, genome) for genome in fresh])
                fits = strategy.fits()
                ranks = [spearmanr(fits[task].predict(at), measured[:, k])[0] for k, task in enumerate(TASKS)]
                seen = np.array([spec_point(spec, genome) for genome, _ in told])
                r2 = [held_back(seen, np.array([scores[task] for _, scores in told])) for task in TASKS]
                cells += [", ".join(f"{value:.3f}" for value in row) for row in (ranks, r2)]
            else:
                cells += ["", ""]
            yield "| " + " | ".join(cells) + " |"


def spec_point(spec: GenomeSpec, genome: Genome) -> NDArray[np.float64]:
    """The genome in units of its bounds."""
    low, high = spec.bounds
    return np.asarray((np.array(genome.values, dtype=np.float64) - low) / (high - low))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", type=Path)
    parser.add_argument("--genes", nargs="+", type=int, default=[2, 6], choices=sorted(BLOCKS))
    parser.add_argument("--evaluations", nargs="+", type=int, default=[44, 120], help="for each number of genes")
    parser.add_argument("--points", type=int, default=100, help="fresh candidates")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the searches (default: 0)")
    parser.add_argument("--held-out", type=int, help="held-out items of each task (default: all)")
    names = ["map", "bayesian", "nested", "nsga2"]
    parser.add_argument("--strategies", nargs="+", default=["map", "nsga2"], choices=names)
    options = parser.parse_args()
    volumes = [f"above {low}, {split}" for low in ("base", "worst source") for split in ("search", "held-out")]
    head = ["pool", "genes", "strategy", "seed", "evaluations", "front", *volumes, "rank correlation", "R2"]
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for genes, evaluations in zip(options.genes, options.evaluations, strict=True):
        for root in options.pools:
            for row in rows(root, genes, evaluations, options):
                print(row, flush=True)


if __name__ == "__main__":
    main()

"""How well metrics without labels rank merged models of the demo: Spearman's correlation with held-out accuracy.

Random candidates of `search_space=by_layer` are scored by every metric on texts of the demo's search items, and by the
held-out tasks' mean accuracy. Prints a table in Markdown, a column for each pool.

    python scripts/unlabelled_correlation.py demo_pool/seed0 demo_pool/seed1 --candidates 200
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from evomerge.candidate import Candidate
from evomerge.config.compose import compose_config
from evomerge.demo.tasks import E_MATHS, HELD_OUT_SKILLS, J_LANGUAGE, J_MATHS
from evomerge.evaluation.worker import Worker
from evomerge.models.opening import open_pool
from evomerge.session.builders import space_from_node
from fitness.lm_eval_tasks import LmEvalFitness
from fitness.several import SeveralFitness
from fitness.unlabelled import UnlabelledFitness

EXPERTS = {E_MATHS: "math", J_LANGUAGE: "lang"}
OF_EXPERTS = ("soft_cross_entropy", "hidden_distance", "agreement")
RISES = ("agreement",)


def fitness_of(root: Path, items: int, held_out_items: int | None = None) -> SeveralFitness:
    """Every metric: on the prompts alone, on what experts answer to them, and on what the base writes.

    Args:
        root: the pool's folder.
        items: texts of each domain.
        held_out_items: of each held-out task; ``None`` for all.
    """
    texts: dict[str, Any] = {}
    for task, expert in EXPERTS.items():
        common = {"task": task, "limit": items, "expert": expert}
        texts[f"prompts.{expert}"] = {**common, "metrics": ["entropy", *OF_EXPERTS]}
        write = {"by": expert, "tokens": 12, "temperature": 0}
        texts[f"answers.{expert}"] = {**common, "write": write, "metrics": ["perplexity", "entropy", *OF_EXPERTS]}
    both = {"task": J_MATHS, "limit": items, "metrics": ["entropy"]}
    texts["prompts.both"] = both
    texts["base"] = {"write": {"texts": items, "tokens": 24}, "metrics": ["kl_to_base", "forgetting"]}
    unlabelled = UnlabelledFitness(texts, include_path=str(root / "tasks"))
    held_out = LmEvalFitness(
        [{"task": task, "metrics": {"acc": 1.0}} for task in HELD_OUT_SKILLS],
        include_path=str(root / "tasks"),
        limit=held_out_items,
        batch_size=64,
        forwards="shared",
    )
    return SeveralFitness({"accuracy": held_out, "unlabelled": unlabelled})


def rows_of(metrics: dict[str, float]) -> dict[str, float]:
    """By what is shown the sum over domains, its sign so that larger is better; perplexities by their logarithms."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        text, _, metric = name.partition("/")
        kind, _, domain = text.partition(".")
        value = np.log(value) if metric == "perplexity" else value
        signed = value if metric in RISES else -value
        for shown in [f"{metric}, {kind}"] if domain != "both" else []:
            found[shown] = found.get(shown, 0.0) + signed
        if metric == "entropy" and kind == "prompts":
            found["entropy, prompts of all three"] = found.get("entropy, prompts of all three", 0.0) + signed
    for kind in ("prompts", "answers"):
        loss = found[f"soft_cross_entropy, {kind}"] + 0.1 * found[f"hidden_distance, {kind}"]
        found[f"Expert Merging's loss, {kind}"] = loss
    return found


def correlations(
    root: Path, candidates: int, items: int, seed: int, held_out_items: int | None = None
) -> dict[str, float]:
    """Spearman's rank correlation of every metric with held-out accuracy."""
    pool = open_pool({name: str(root / name) for name in ("base", "math", "lang")}, base="base")
    node = compose_config(["experiment=demo", f"pool.root='{root}'"]).search_space
    space = space_from_node(node, "search_space", pool.info)
    fitness = fitness_of(root, items, held_out_items)
    fitness.check()
    worker = Worker(pool, {"search": fitness}, device="cpu", threads=1)
    rng = np.random.default_rng(seed)
    accuracy, columns, result = [], [], {}
    for number in range(candidates):
        found = worker.evaluate(Candidate(number, space.decode(space.spec.sample(rng))))
        if not found.ok:
            raise SystemExit(f"candidate {number}: {found.error}")
        accuracy.append(found.objectives["accuracy"])
        columns.append(rows_of({k: v for k, v in found.metrics.items() if k.split("/")[0] not in HELD_OUT_SKILLS}))
        if (number + 1) % 25 == 0 or number + 1 == candidates:
            result = {name: float(spearmanr([row[name] for row in columns], accuracy)[0]) for name in columns[0]}
            print(
                f"{root.name}: {number + 1} of {candidates}",
                {k: round(v, 2) for k, v in result.items()},
                file=sys.stderr,
            )
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pools", nargs="+", type=Path)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--items", type=int, default=100, help="texts of each domain")
    parser.add_argument("--held-out-items", type=int, help="of each held-out task (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the candidates")
    options = parser.parse_args()
    how = options.candidates, options.items, options.seed, options.held_out_items
    found = [correlations(root, *how) for root in options.pools]
    names = sorted(found[0], key=lambda name: -np.mean([each[name] for each in found]))
    print("| metric | " + " | ".join(root.name for root in options.pools) + " |")
    print("|---|" + "---:|" * len(found))
    for name in names:
        print(f"| {name} | " + " | ".join(f"{each[name]:.2f}" for each in found) + " |")


if __name__ == "__main__":
    main()

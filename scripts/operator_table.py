"""What each merge method is worth untuned and searched: `python scripts/operator_table.py FOLDER POOL [POOL ...]`.

Pools are the demo's, one for every seed: `evomerge demo --pool-only --seed 1` makes `demo_pool/seed1`. Every operator
below is merged once with what its paper recommends, the same on every slice, and tuned by CMA-ES: its searched
parameters, by layer, in `--evaluations` evaluations, the others as its paper has them. Both are scored on the
held-out items. The table has means over pools, the gain of searching and its p: paired item by item, the items of all
pools together (McNemar), and after Holm for the number of operators.

What is in the folder already is not done again, so that a series goes on where it was stopped:

    python scripts/operator_table.py runs/operators demo_pool/seed{0,1,2}
    python scripts/operator_table.py runs/operators demo_pool/seed{0,1,2} --table   # of what is there
    python scripts/operator_table.py runs/operators demo_pool/seed{0,1,2} --operators fisher,regmean,ota,rcp

Methods for a training's checkpoints and for adapters merge those of the same pools, `evomerge demo --pool-only --seed 1
--checkpoints 16 --adapters 4`, and have a table of their own, with the source that is best on the held-out items:

    python scripts/operator_table.py runs/operators demo_pool/seed{0,1,2} --operators ema,mwa
    python scripts/operator_table.py runs/operators demo_pool/seed{0,1,2} --operators lora_lego,lora_factors
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.api.run import Run
from evomerge.api.searching import search
from evomerge.candidate import Candidate
from evomerge.config.compose import compose_config
from evomerge.errors import ConfigError, EvomergeError, nearest
from evomerge.evaluation.worker import Worker
from evomerge.merge.methods import specs
from evomerge.models.pool import Pool
from evomerge.recipes.pool_info import UNIFORM, PoolInfo, baseline_recipes
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe, parameters
from evomerge.recipes.yaml_reader import read_recipe_file
from evomerge.report.formatting import p_text
from evomerge.report.history import read_history
from evomerge.report.statistics import Comparison, Floats, compare
from evomerge.session.best_recipe import best_recipe
from evomerge.session.builders import fitness_from_config
from evomerge.session.calibration import make_statistics, plan_calibration
from evomerge.session.pools import pool_from_config
from evomerge.session.series import fill_models
from evomerge.utils.files import write_text_atomic

COMPONENTS = "[[attn, mlp, norm], [embed], [final_norm, head]]"


@dataclass(frozen=True)
class Operator:
    """A method as its paper recommends it.

    Attributes:
        source: where the values are from.
        given: parameters; ``weight: mean`` is one over the number of sources, ``metric: step`` the number in a
            checkpoint's name. Others have their default.
    """

    source: str
    given: Mapping[str, Any] = field(default_factory=dict)


OPERATORS: Mapping[str, Operator] = {
    "linear": Operator("2203.05482: the uniform soup", {"weight": "mean"}),
    "model_stock": Operator("2403.19522: nothing to set"),
    "slerp": Operator("midway", {"t": 0.5}),
    "nuslerp": Operator("midway", {"weight": "mean"}),
    "multislerp": Operator("uniform", {"weight": "mean"}),
    "karcher": Operator("2603.04972: uniform", {"weight": "mean"}),
    "crossover": Operator("2508.16204 draws both at random: the middle", {"t": 0.5, "split": 0.5}),
    "task_arithmetic": Operator("2212.04089: 0.4 where nothing is validated", {"weight": 0.4}),
    "ties": Operator("2306.01708: 20 %, lambda 1", {"density": 0.2}),
    "dare_linear": Operator(
        "2311.03099 validates both: 90 % dropped, which it says costs one model nothing, and 0.5 (its code's example "
        "of merging: 20 %, averaged)",
        {"density": 0.1, "weight": 0.5},
    ),
    "dare_ties": Operator("as dare_linear, TIES with lambda 1", {"density": 0.1}),
    "della": Operator(
        "2406.11617 validates all: 30 % dropped, as its code's example (there lambda 1.1 and epsilon 0.07)",
        {"density": 0.7},
    ),
    "della_linear": Operator("as della, averaged", {"density": 0.7, "weight": "mean"}),
    "breadcrumbs": Operator(
        "2312.06795 validates all: of what its code searches (density 0.05 to 0.2, gamma 0.001 to 0.01, alpha to 1)",
        {"density": 0.1, "gamma": 0.01, "weight": 0.3},
    ),
    "breadcrumbs_ties": Operator("as breadcrumbs, TIES with lambda 1", {"density": 0.1, "gamma": 0.01}),
    "sce": Operator("2408.07990: 10 %", {"select_topk": 0.1}),
    "magmax": Operator("2407.06322: lambda 0.5", {"weight": 0.5}),
    "delta_guided": Operator("2508.11442: deviations themselves, power 1"),
    "emr": Operator("2405.17461: nothing to set"),
    "consensus": Operator("2405.07813: k 2, masks of 0.4; 0.4 as task_arithmetic", {"weight": 0.4}),
    "localize_and_stitch": Operator("2408.13656: 5 %", {"density": 0.05}),
    "pcb": Operator("2410.02396: 10 %, lambda 1", {"density": 0.1}),
    "widen": Operator("2408.03092: t 1, s 1"),
    "ram": Operator("2601.13572: epsilon of the code"),
    "ramplus_tl": Operator("2601.13572: r and alpha of the code"),
    "iso_c": Operator("2502.04959 validates the factor: 1, as fusion_bench has it"),
    "iso_cts": Operator("2502.04959: common 0.8, as its code has it; the factor as iso_c", {"common": 0.8}),
    "tsv_m": Operator("2412.00081: 1, rank over the number of tasks"),
    "wudi": Operator("2503.08099: 300 steps of Adam at 1e-5", {"iterations": 300, "rate": 1e-5}),
    "optmerge": Operator("2505.19892: 300 steps of Adam at 1e-5", {"iterations": 300, "rate": 1e-5}),
    "opcm": Operator("2501.09522: alpha 0.5"),
    "doge": Operator("2501.01230: eta 0.07, 30 %, 400 steps"),
}
"""Not here: those of checkpoints and of adapters, which are below, and those of one source: nearswap, arcee_fusion,
passthrough; of what was learnt on data: masked, columns."""
OF_CHECKPOINTS: Mapping[str, Operator] = {
    "ema": Operator("half of the average stays at each further checkpoint, as `ema` has it", {"rate": 0.5}),
    "mwa": Operator("2504.18580 by steps, penalty 1", {"metric": "step", "penalty": 1.0}),
}
"""Of the checkpoints of one training, `evomerge demo --checkpoints 16`."""
OF_ADAPTERS: Mapping[str, Operator] = {
    "lora_lego": Operator("2409.16167: as many units as an adapter has, both of its rescalings"),
    "lora_factors": Operator("2509.12951 begins with all of every A, and averages", {"weight": "mean"}),
}
"""Of adapters on the base, `evomerge demo --adapters 4`; of more the first four."""
CALIBRATED: Mapping[str, Operator] = {
    "fisher": Operator("2111.09832: equal weights"),
    "hessian": Operator("2111.09832 takes the Fisher information for it: equal weights"),
    "regmean": Operator("2212.09849: alpha 0.9"),
    "ota": Operator(
        "2509.11167: power 0.5, a threshold for the model; it chooses that of FFG: half",
        {"density": 0.5, "scope": "model"},
    ),
    "rcp": Operator("2508.03140: lambda 1000, the first source is the prior", {"log_lambda": 3.0}),
}
"""Of statistics of data: each source reads the 250 items of its own search task."""
TASKS = {"math": "demo_e_maths", "lang": "demo_j_language"}


KINDS: Mapping[str, Sequence[str]] = {
    "": (),
    "checkpoints": ("pool=checkpoints", "pool.checkpoints.folder=training"),
    "adapters": ("pool=adapters", "pool.models={base: base}", "pool.adapters='adapters/0[0-3]-*'"),
}
"""Of what is merged: overrides beside those of `experiment=demo`. The first is the demo's own models."""
EVERY: Mapping[str, Operator] = {**OPERATORS, **CALIBRATED, **OF_CHECKPOINTS, **OF_ADAPTERS}


def kind_of(name: str) -> str:
    """What an operator merges, one of `KINDS`."""
    return "checkpoints" if name in OF_CHECKPOINTS else "adapters" if name in OF_ADAPTERS else ""


def calibration(root: Path, names: Sequence[str]) -> list[str]:
    """The overrides with which methods find their statistics; none where no method reads any."""
    if not set(names) & CALIBRATED.keys():
        return []
    files = ", ".join(f"{model}: '{root}/tasks/{task}.jsonl'" for model, task in TASKS.items())
    return ["calibration=text", f"calibration.files={{{files}}}"]


def untuned(info: PoolInfo, name: str) -> Recipe:
    """Every slice merged by the operator with what its paper recommends.

    Args:
        info: of a pool with a base.
        name: of the operator.
    """
    spec, values = specs()[name], dict(EVERY[name].given)
    if values.get("weight") == "mean":
        values["weight"] = 1.0 / len(info.sources)
    each = {p.name: values[p.name] for p in spec.parameters if p.per_input and p.name in values}
    shared = {p.name: values[p.name] for p in spec.parameters if not p.per_input and p.name in values}
    if spec.parameter("normalize") and "weight" in values:
        shared["normalize"] = False
    own = {source: each | ({"metric": step(source)} if each.get("metric") == "step" else {}) for source in info.sources}
    inputs = tuple(Input(source, None, parameters(values)) for source, values in own.items())
    base = Input(info.base) if spec.base != "none" and info.base is not None else None
    return info.recipe(SliceRecipe(own, name, inputs, parameters(shared), base) for own in info.slices)


def step(source: str) -> float:
    """Of a checkpoint: 40 of ``step-40``."""
    return float(source.rpartition("-")[2])


def searched(name: str) -> list[str]:
    """The parameters of an operator that a search varies."""
    return [parameter.name for parameter in specs()[name].parameters if parameter.searched]


def space(name: str, sources: Sequence[str] = ()) -> list[str]:
    """The overrides of a search over an operator: by layer, what its paper fixes fixed.

    Args:
        name: of the operator.
        sources: of the pool, for what each has of its own.
    """
    kept = {key: value for key, value in EVERY[name].given.items() if key not in searched(name)}
    if kept.get("metric") == "step":
        kept["metric"] = "{" + ", ".join(f"{source}: {step(source)}" for source in sources) + "}"
    words = ", ".join(f"{key}: {value}" for key, value in kept.items())
    return [
        "search_space=parameter",
        f"search_space.method={name}",
        "search_space.layer_group=layer",
        f"search_space.components={COMPONENTS}",
        *([f"search_space.parameters={{{words}}}"] if kept else []),
    ]


class Series:
    """The searches and scores of a pool.

    Args:
        folder: where runs and scores are kept.
        root: the pool's folder.
        evaluations: of a search.
        limit: items of every task that a search sees.
        names: of the operators.
        kind: of what is merged, one of `KINDS`.
    """

    def __init__(
        self,
        folder: Path,
        root: Path,
        evaluations: int,
        limit: int,
        names: Sequence[str] = tuple(OPERATORS),
        kind: str = "",
    ) -> None:
        self._folder = folder / "-".join(filter(None, (root.name, kind)))
        self._root, self._evaluations, self._limit = root, evaluations, limit
        self._given = ["experiment=demo", *KINDS[kind], f"pool.root='{root}'"]
        self._names = [name for name in names if name in CALIBRATED]
        self._worker: Worker | None = None
        self._pool: Pool | None = None

    def score(self, name: str) -> Path:
        """Where the held-out scores of a recipe are: made, if they are not there."""
        return self._folder / f"{name}.json"

    def do(self, name: str) -> None:
        """Score an operator, untuned and tuned; what is there already is kept."""
        if not self.score(f"untuned-{name}").is_file():
            self._keep(f"untuned-{name}", untuned(self._opened().info, name))
        tuned = self.score(f"tuned-{name}")
        if searched(name) and not tuned.is_file():
            self._keep(f"tuned-{name}", read_recipe_file(best_recipe(self._search(name))))

    def baselines(self) -> None:
        """Score the models of the pool and their average."""
        for name, recipe in baseline_recipes(self._opened().info).items():
            if not self.score(name).is_file():
                self._keep(name, recipe)

    def best_source(self) -> float | None:
        """The score of the source that has the best; ``None`` before the sources are scored."""
        names = [path.stem for path in self._folder.glob("*.json") if not path.stem.startswith(("tuned-", "untuned-"))]
        found = [mean(read_scores(self.score(name))) for name in names if name != UNIFORM]
        return max(found, default=None)

    def _search(self, name: str) -> Path:
        run = self._folder / name
        if run.exists() and read_history(run).stopped is None:
            Run(run).resume(display="quiet")
        elif not run.exists():
            search(
                *self._given,
                "fitness@held_out=null",
                "search.baselines=false",
                "search.racing.first=null",
                f"fitness.limit={self._limit}",
                f"search.evaluations={self._evaluations}",
                f"run_dir='{run}'",
                *space(name, self._opened().info.sources),
                *calibration(self._root, [name]),
                display="quiet",
            )
        return run

    def _opened(self) -> Pool:
        if self._pool is None:
            words = [*self._given, *calibration(self._root, self._names)]
            if self._names:
                words += ["search_space=parameter", f"search_space.method=[{', '.join(self._names)}]"]
            config = compose_config(words)
            fill_models(config)
            self._pool = pool_from_config(config)
            found = plan_calibration(config, self._pool)
            make_statistics(found)
            self._pool = found.pool if found is not None else self._pool
            self._worker = Worker(self._pool, {"held_out": fitness_from_config(config, "held_out")})
        return self._pool

    def _keep(self, name: str, recipe: Recipe) -> None:
        self._opened()
        assert self._worker is not None
        evaluation = self._worker.evaluate(Candidate(0, recipe), "held_out")
        if not evaluation.ok:
            raise EvomergeError(f"{name} of {self._root} could not be scored: {evaluation.error}")
        items = {metric: values.tolist() for metric, values in evaluation.items.items() if metric.endswith("/acc")}
        self.score(name).parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(self.score(name), json.dumps(items))


def read_scores(path: Path) -> dict[str, Floats]:
    """By task the right and wrong answers that were kept."""
    return {task: np.array(values, dtype=np.float64) for task, values in json.loads(path.read_text()).items()}


def holm(values: Sequence[float]) -> list[float]:
    """P-values after Holm (1979, Scandinavian Journal of Statistics 6:65) for as many tests."""
    order = np.argsort(values, kind="stable")
    adjusted = np.array(values, dtype=np.float64)[order] * np.arange(len(values), 0, -1)
    found = np.empty(len(values))
    found[order] = np.minimum(1.0, np.maximum.accumulate(adjusted))
    return [float(value) for value in found]


def _mean(pools: Sequence[Mapping[str, Floats]]) -> float:
    return float(np.mean([np.mean([values.mean() for values in own.values()]) for own in pools]))


def table(series: Mapping[str, Series], names: Sequence[str]) -> str:
    """The Markdown table of the pools in which an operator was scored, best tuned first; says which are missing."""
    rows: list[tuple[str, float, float | None, Comparison | None, str]] = []
    missing = []
    for name in names:
        own = [each for each in series.values() if each.score(f"untuned-{name}").is_file()]
        before = [read_scores(each.score(f"untuned-{name}")) for each in own]
        tuned = [each.score(f"tuned-{name}") for each in own if searched(name)]
        if len(own) < len(series) or not all(path.is_file() for path in tuned):
            missing.append(name)
            continue
        after = [read_scores(path) for path in tuned]
        if not after:
            rows.append((name, _mean(before), None, None, ""))
            continue
        tested = compare(strata(after), strata(before))
        gains = [_mean([a]) - _mean([b]) for a, b in zip(after, before, strict=True)]
        rows.append((name, _mean(before), _mean(after), tested, f"{min(gains):+.3f} to {max(gains):+.3f}"))
    values = iter(holm([row[3].p_value for row in rows if row[3] is not None]))
    corrected = {row[0]: next(values) for row in rows if row[3] is not None}
    lines = [
        "| method | untuned | tuned | gain | by pool | p | p, Holm |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for name in ("base", UNIFORM):
        paths = [each.score(name) for each in series.values()]
        if all(path.is_file() for path in paths):
            lines.append(f"| {name} | {_mean([read_scores(path) for path in paths]):.3f} | | | | | |")
    if {kind_of(name) for name in names} != {""}:
        found = [value for value in (each.best_source() for each in series.values()) if value is not None]
        if len(found) == len(series):
            lines.append(f"| best source | {np.mean(found):.3f} | | | | | |")
    for name, first, second, test, spread in sorted(rows, key=lambda row: -(row[2] or row[1])):
        if second is None or test is None:
            lines.append(f"| `{name}` | {first:.3f} | | | | | |")
            continue
        p = f"{p_text(test.p_value)} | {p_text(corrected[name])}"
        lines.append(f"| `{name}` | {first:.3f} | {second:.3f} | {second - first:+.3f} | {spread} | {p} |")
    if missing:
        lines.append(f"\nNot complete: {', '.join(missing)}.")
    return "\n".join(lines)


def strata(pools: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    """The items of all pools, which have their own: a task of a pool is a stratum."""
    return {f"{task}/{number}": values for number, own in enumerate(pools) for task, values in own.items()}


def mean(scores: Mapping[str, Floats]) -> float:
    """Of the tasks' accuracies."""
    return float(np.mean([values.mean() for values in scores.values()]))


def against(own: Sequence[Mapping[str, Floats]], others: Sequence[Mapping[str, Floats]]) -> str:
    """By how much the means of some pools are above those of others, and its p, item by item."""
    tested = compare(strata(own), strata(others))
    gain = np.mean([mean(one) - mean(other) for one, other in zip(own, others, strict=True)])
    return f"{gain:+.3f}, p = {p_text(tested.p_value)}"


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description="Untuned and tuned scores of merge methods on the demo's pools.")
    parser.add_argument("folder", type=Path, help="where runs and scores go")
    parser.add_argument("pools", nargs="+", type=Path, metavar="POOL", help="folders of demo pools")
    parser.add_argument("--operators", default=",".join(OPERATORS), help="some of them, with commas between")
    parser.add_argument("--evaluations", type=int, default=150, help="of a search (default: 150)")
    parser.add_argument("--limit", type=int, default=100, help="items of a task that a search sees (default: 100)")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args(arguments)
    names = options.operators.split(",")
    try:
        for name in names:
            if name not in EVERY:
                raise ConfigError(f"--operators has {name!r}", nearest(name, EVERY))
        for kind in dict.fromkeys(map(kind_of, names)):
            chosen = [name for name in names if kind_of(name) == kind]
            budget = options.evaluations, options.limit
            series = {str(pool): Series(options.folder, pool, *budget, chosen, kind) for pool in options.pools}
            for pool, own in series.items():
                for name in () if options.table else chosen:
                    print(f"{pool}: {name}", file=sys.stderr, flush=True)
                    own.do(name)
                if not options.table:
                    own.baselines()
            print(table(series, chosen))
    except EvomergeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Which strategy works on which search space, tried out; ``python scripts/strategy_table.py`` renews the docs.

Every pair of the groups `strategy` and `search_space` is constructed on the description of a small pool and plays a
few rounds with made-up scores. It runs, or it is refused with a reason.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from evomerge import conf_dir
from evomerge.candidate import Candidate, Evaluation
from evomerge.config.compose import compose_config
from evomerge.config.construct import TARGET, build, locate, to_builtin
from evomerge.config.groups import can_be_asynchronous, strategy_node, takes_asynchronous
from evomerge.errors import ConfigError
from evomerge.genomes.genome import GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import SearchSpace, Strategy
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import LAYER_COMPONENTS, ModelRef, SliceId
from evomerge.session.builders import space_from_node, without_prior

PAGE = Path(__file__).parents[1] / "docs" / "strategies.md"
BEGIN, END = "<!-- table: python scripts/strategy_table.py -->", "<!-- end of table -->"
SMALL = {
    "weights": ["search_space.shapes={W1: [64, 1], b1: [1], W2: [1, 10], b2: [10]}", "+search_space.seeds.hidden=1"],
    "blocks": ["search_space.block=2"],
    "listed": ["search_space.recipes={a: linear, b: ties, c: task_arithmetic}"],
}
"""Overrides that keep a space small."""

OTHERS = ("landscape",)
"""Spaces that have the genes of another."""

GRID = "parameter with a resolution"
"""What stands for all spaces whose genes are discrete."""

PORTIONS = (10, 10, 1)
"""What is asked for in each round: enough for strategies to learn, and little of what `gp` models, which is slow."""

INJECTED = ("self", "spec", "objectives", "seed")


def options(group: str) -> list[str]:
    """The choices of a group, by name."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def small_pool() -> PoolInfo:
    """A base and two models of four layers, with one tensor in every slice."""
    inner = [SliceId(component, layer) for layer in range(4) for component in LAYER_COMPONENTS]
    refs = {name: ModelRef(f"pool/{name}", None, f"sha256:{name}") for name in ("base", "math", "lang")}
    slices = (SliceId("embed"), *inner, SliceId("final_norm"))
    tensors = tuple(((f"{name}.weight", 8),) for name in map(str, slices))
    sizes = (8,) * len(slices)
    return PoolInfo(tuple(refs.items()), ("math", "lang"), "base", slices, 4, "bfloat16", sizes=sizes, tensors=tensors)


@cache
def node(group: str, option: str, *overrides: str) -> dict[str, Any]:
    """The composed configuration node of one choice."""
    config: Any = compose_config([f"{group}={option}", *SMALL.get(option, []), *overrides, "~fitness"])
    values: dict[str, Any] = to_builtin(config[group])
    return values


def genes(option: str, *overrides: str) -> GenomeSpec:
    """The genes of one search space on the small pool."""
    space: SearchSpace = space_from_node(node("search_space", option, *overrides), "search_space", small_pool())
    return space.spec


def play(strategy: Strategy, spec: GenomeSpec) -> int:
    """Ask and tell with made-up scores, a failure among them; how many candidates there were."""
    rng, count = np.random.default_rng(0), 0
    for portion in PORTIONS:
        for proposal in strategy.ask(portion):
            spec.check(proposal.genome)
            items = {"toy/acc": rng.integers(0, 2, 8).astype(np.float64)}
            told = Evaluation(count, "ok", objectives={"score": float(items["toy/acc"].mean())}, items=items)
            if count == 1:
                told = Evaluation(count, "failed", error="made up")
            strategy.tell(Candidate(count, None, proposal.genome, proposal.parents), told)
            count += 1
    return count


def outcome(strategy: Mapping[str, Any], spec: GenomeSpec) -> str:
    """Why a strategy is refused on these genes; ``""`` when it plays."""
    try:
        made: Strategy = build(without_prior(strategy, "strategy")[0], "strategy", spec, (Objective("score"),), seed=0)
    except ConfigError as error:
        return str(error)
    if not play(made, spec):
        raise RuntimeError(f"{strategy[TARGET]} proposed nothing")
    return ""


def outcomes() -> dict[str, dict[str, str]]:
    """Strategy -> search space -> the reason, ``""`` where there is none."""
    spaces = {option: genes(option) for option in options("search_space") if option not in OTHERS}
    spaces[GRID] = genes("parameter", "search_space.resolution=0.1")
    strategies = {option: node("strategy", option) for option in options("strategy")}
    return {
        name: {option: outcome(strategy, spec) for option, spec in spaces.items()}
        for name, strategy in strategies.items()
    }


def table(found: Mapping[str, Mapping[str, str]]) -> str:
    """The generated part of the page: pairs, reasons, and every strategy's abilities and options."""
    columns: dict[tuple[bool, ...], list[str]] = {}
    for option in next(iter(found.values())):
        columns.setdefault(tuple(not row[option] for row in found.values()), []).append(option)
    heads = list(columns.values())
    lines = [_row(["strategy", *(", ".join(head) for head in heads)]), _row(["---"] * (len(heads) + 1))]
    reasons: dict[str, str] = {}
    for name, row in found.items():
        cells = ["no" if row[head[0]] else "yes" for head in heads]
        lines.append(_row([f"`{name}`", *cells]))
        for head in heads:
            if row[head[0]]:
                reasons[f"`{name}` on {', '.join(f'`{option}`' for option in head)}"] = row[head[0]]
    lines += ["", "Why not:", "", *(f"- {pair}: {reason}" for pair, reason in reasons.items())] if reasons else []
    lines += ["", _row(["strategy", "asynchronous", "several objectives", "options and defaults"]), _row(["---"] * 4)]
    lines += [_abilities(name) for name in found]
    return "\n".join(lines)


def _abilities(option: str) -> str:
    target: Any = locate(str(node("strategy", option)[TARGET]), f"strategy={option}")
    parameters = inspect.signature(target.__init__).parameters.values()
    said = strategy_node(conf_dir(), option)
    defaults = {p.name: said.get(p.name, p.default) for p in parameters if p.name not in INJECTED}
    given = {name: "" if value is inspect.Parameter.empty or isinstance(value, list) else f"={value}"
             for name, value in defaults.items()}  # fmt: skip
    shown = [f"`{name}{value}`" for name, value in given.items()]
    words = [_says(can_be_asynchronous(target)), _says(target.multi_objective)]
    if takes_asynchronous(target):
        words[0] = "with `search.ordered=false`"
    if option == "islands":
        words[0] = "if all islands are"
    return _row([f"`{option}`", *words, ", ".join(shown) or "none"])


def _says(value: bool) -> str:
    return "yes" if value else "no"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def renewed(page: str, made: str) -> str:
    """The page with the part between its markers replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(), table(outcomes())))
    sys.stdout.write(f"{PAGE}\n")

"""The examples and the numbers of docs/data_flow.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from contracts.space_samples import pool, with_sources

from evomerge import conf_dir
from evomerge.config.compose import compose_config
from evomerge.config.construct import build
from evomerge.merge.methods import specs
from evomerge.objectives import Objective
from evomerge.protocols import SearchSpace, Strategy
from evomerge.session.builders import space_from_node, without_prior

TEXT = (Path(__file__).parents[2] / "docs" / "data_flow.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]


def space(*overrides: str, layers: int = 6) -> SearchSpace:
    config: Any = compose_config([*overrides, "~fitness"])
    info = with_sources(pool(layers), "math", "lang")
    made: SearchSpace = space_from_node(config.search_space, "search_space", info)
    return made


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example["defaults"][0]))
def test_examples(example: dict[str, Any]) -> None:
    groups = [f"{name.removeprefix('override /')}={option}" for d in example["defaults"] for name, option in d.items()]
    keys = [
        f"search_space.{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
        for key, value in example["search_space"].items()
    ]
    made = space(*groups, *keys)
    made.decode(made.spec.initial).check(specs())
    config: Any = compose_config([*groups, "~fitness"])
    node, _ = without_prior(config.strategy, "strategy")
    strategy: Strategy = build(node, "strategy", made.spec, [Objective("score")], seed=1)
    assert len(strategy.ask()) > 3


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2
    assert {f"demo_{name}" for name in ("data_flow", "hybrid")} <= {
        p.stem for p in conf_dir().glob("experiment/*.yaml")
    }


@pytest.mark.parametrize("option", ["data_flow", "blocks", "permutation", "relaxed_data_flow", "joint"])
def test_numbers_of_genes(option: str) -> None:
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{option}` |"))
    genes = int(re.findall(r"\d+", row.split("|")[3])[0])
    assert len(space(f"search_space={option}", layers=32).spec) == genes

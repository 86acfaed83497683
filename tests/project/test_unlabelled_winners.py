"""The table of searches without labels: what each searches by, and what is made of its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.config.compose import compose_config
from evomerge.session.builders import fitness_from_config
from scripts.unlabelled_winners import LABELS, METRICS, RUNG, Winners, main, table


@pytest.mark.parametrize("name", [*METRICS, LABELS, RUNG])
def test_every_search_can_be_composed(name: str, tmp_path: Path) -> None:
    config: Any = compose_config([*Winners(tmp_path, Path("pool"), 10, 7)._by(name), "pool.root=pool"])
    texts = {RUNG: config.cheap, LABELS: None}.get(name, config.fitness)
    assert (config.cheap is not None) == (name == RUNG)
    if texts is None:
        assert config.fitness.limit == 7
        return
    assert [entry.expert for entry in texts.texts.values()] == ["math", "lang"]
    assert {entry.limit for entry in texts.texts.values()} == {7}
    assert ("write" in texts.texts.math) == (name != "entropy")
    node = "cheap" if name == RUNG else "fitness"
    objective = fitness_from_config(config, node).objectives
    assert [(own.name, own.direction) for own in objective] == [("score", "maximize")]


def test_means_by_pool_and_against_labels(tmp_path: Path) -> None:
    rows = {LABELS: [[1, 1, 1, 0], [1, 1, 0, 0]], "entropy": [[1, 0, 0, 0], [1, 1, 0, 0]], RUNG: [[1, 1, 1, 1]]}
    for name, pools in rows.items():
        for number, values in enumerate(pools):
            path = tmp_path / f"seed{number}" / f"{name}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"t/acc": values}))
    pools = [Winners(tmp_path, Path(f"seed{number}"), 10, 7) for number in range(2)]
    assert table(pools).splitlines()[2:] == [
        "| `entropy` | 0.375 (2) | 0.250, 0.500 | -0.250, p = 0.5 |",  # two items lost, none won
        "| labels | 0.625 (2) | 0.750, 0.500 |  |",
        "| labels after a cheap rung | 1.000 (1) | 1.000 | +0.250, p = 1 |",
    ]


def test_a_metric_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "pool", "--metrics", "entropi"]) == 2
    assert "--metrics has 'entropi'; did you mean 'entropy'?" in capsys.readouterr().err

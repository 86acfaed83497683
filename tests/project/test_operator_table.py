"""The table of untuned and tuned operators: every method is in it, with parameters that it has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from contracts.space_samples import pool, with_sources

from evomerge.config.compose import compose_config
from evomerge.config.construct import to_builtin
from evomerge.merge.methods import specs
from evomerge.recipes.calibration import MEASURED, OF_EXPERTS
from evomerge.session.builders import space_from_node
from scripts.operator_table import (
    CALIBRATED,
    EVERY,
    KINDS,
    OF_ADAPTERS,
    OF_CHECKPOINTS,
    OPERATORS,
    Series,
    calibration,
    holm,
    kind_of,
    searched,
    space,
    table,
    untuned,
)

METHODS = specs()

ELSEWHERE = {
    *("nearswap", "arcee_fusion", "passthrough"),  # of one source
    *(*OF_CHECKPOINTS, *OF_ADAPTERS),
    *CALIBRATED,  # read statistics of data: docs/calibration.md
    *("columns", "masked"),  # read what was learnt: docs/learned.md
    *("emr_switch", "tall_switch", "twin_switch"),  # make a model for each task
    "fold",  # merges within one model: docs/alignment.md
    "usage",  # of mixtures of experts, which the demo is not
    "low_rank_noise",  # merges nothing: docs/eggroll.md
}


def test_every_method_is_in_the_table() -> None:
    assert OPERATORS.keys() == METHODS.keys() - ELSEWHERE


def test_methods_of_data_have_a_table_of_their_own() -> None:
    kinds = {*MEASURED} - {*OF_EXPERTS}
    assert CALIBRATED.keys() == {name for name, spec in METHODS.items() if spec.kinds and {*spec.kinds} <= kinds}
    assert calibration(Path("pool"), ["ties"]) == []
    assert calibration(Path("pool"), ["rcp"])[1].startswith("calibration.files={math: 'pool/tasks/demo_e_maths.jsonl'")


@pytest.mark.parametrize("name", [*OPERATORS, *CALIBRATED, *OF_ADAPTERS])
def test_what_papers_recommend_is_a_recipe_and_a_space(name: str) -> None:
    recipe = untuned(pool(), name)
    recipe.check(METHODS)
    given = dict(EVERY[name].given)
    assert given.keys() <= {parameter.name for parameter in METHODS[name].parameters}
    if not searched(name):
        return
    node = to_builtin(compose_config(["experiment=demo", *space(name)]).search_space)
    made = space_from_node(node, "search_space", pool())
    entry = made.decode(made.spec.initial).slices[0]
    kept = {key: value for key, value in given.items() if key not in searched(name)}
    assert kept.items() <= {**dict(entry.parameters), **dict(entry.inputs[0].parameters)}.items()


@pytest.mark.parametrize("name", OF_CHECKPOINTS)
def test_methods_of_checkpoints_know_the_steps(name: str) -> None:
    """Untuned and in a search the metric of a checkpoint is its step, and what is searched begins there."""
    series = with_sources(pool(), "step-40", "step-60", base="step-20")
    recipe = untuned(series, name)
    recipe.check(METHODS)
    node = to_builtin(compose_config(["experiment=demo", *space(name, series.sources)]).search_space)
    made = space_from_node(node, "search_space", series)
    found = made.decode(made.spec.initial).slices[0]
    if name == "mwa":
        assert [dict(own.parameters)["metric"] for own in recipe.slices[0].inputs] == [40.0, 60.0]
        assert [dict(own.parameters)["metric"] for own in found.inputs] == [40.0, 60.0]
    gene = {"ema": "rate", "mwa": "penalty"}[name]
    assert dict(recipe.slices[0].parameters)[gene] == dict(found.parameters)[gene]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pool_is_a_configuration(kind: str) -> None:
    given = compose_config(["experiment=demo", *KINDS[kind], "pool.root='demo_pool/seed1'"]).pool
    assert given.root == "demo_pool/seed1"
    assert {"": "math" in given.models, "checkpoints": "checkpoints" in given, "adapters": "adapters" in given}[kind]
    assert {kind_of(name) for name in EVERY} == KINDS.keys()


def test_holm_by_hand() -> None:
    # 3 x 0.01, 2 x 0.02, then 0.03 raised to what came before.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_the_table_of_what_is_there(tmp_path: Path) -> None:
    series = {str(seed): Series(tmp_path, tmp_path / f"seed{seed}", 10, 10) for seed in range(2)}
    rng = np.random.default_rng(0)
    for seed in range(2):
        (tmp_path / f"seed{seed}").mkdir()
        wrong = np.zeros(200)
        some = np.r_[np.ones(100), np.zeros(100)]
        for name, values in (("untuned-ties", wrong), ("tuned-ties", some), ("untuned-model_stock", some)):
            items = {f"task{number}/acc": rng.permutation(values).tolist() for number in range(3)}
            (tmp_path / f"seed{seed}" / f"{name}.json").write_text(json.dumps(items))
    lines = table(series, ["ties", "model_stock", "emr"]).splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert cells[:5] == ["`ties`", "0.000", "0.500", "+0.500", "+0.500 to +0.500"]
    assert float(cells[5].replace("**", "").replace("< ", "")) < 1e-50
    assert lines[3].startswith("| `model_stock` | 0.500 | |")
    assert lines[-1] == "Not complete: emr."


def test_the_table_of_adapters_has_the_best_source(tmp_path: Path) -> None:
    """Of each pool the one that is best there: 0.75 of the first, 0.25 of the second."""
    series = {str(n): Series(tmp_path, tmp_path / f"seed{n}", 10, 10, ["lora_lego"], "adapters") for n in range(2)}
    for number, rights in enumerate([{"00-sort": 3, "01-report": 1}, {"00-sort": 0, "01-report": 1}]):
        (tmp_path / f"seed{number}-adapters").mkdir()
        for name, right in {**rights, "uniform average": 2, "untuned-lora_lego": 2, "tuned-lora_lego": 4}.items():
            kept = tmp_path / f"seed{number}-adapters" / f"{name}.json"
            kept.write_text(json.dumps({"task/acc": [1.0] * right + [0.0] * (4 - right)}))
    lines = table(series, ["lora_lego"]).splitlines()
    assert lines[2:4] == ["| uniform average | 0.500 | | | | | |", "| best source | 0.500 | | | | | |"]
    assert lines[4].startswith("| `lora_lego` | 0.500 | 1.000 | +0.500 | +0.500 to +0.500 |")

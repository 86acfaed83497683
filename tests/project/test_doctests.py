"""The examples of docstrings, run in a folder that has a pool, a run and a recipe."""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path

import pytest

import evomerge
from evomerge.demo.pool import make_demo_pool

MODULES = (
    "evomerge",
    "evomerge.api.calibrating",
    "evomerge.api.pool",
    "evomerge.api.recipe",
    "evomerge.api.run",
    "evomerge.api.searching",
    "evomerge.genomes.genome",
    "evomerge.objectives",
    "evomerge.recipes.recipe",
    "evomerge.recipes.slices",
    "evomerge.recipes.yaml_reader",
    "evomerge.strategies.cma_es",
    "evomerge.strategies.random_search",
    "fitness.estimators.stratified_mean",
    "search_spaces.parameter",
)


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder: ``demo_pool/seed0``, ``runs/demo`` and ``recipe.yaml``."""
    folder = tmp_path_factory.mktemp("doctests")
    pool = make_demo_pool(folder / "demo_pool" / "seed0", 0, quick=True, progress=False)
    run = evomerge.search(
        "experiment=demo",
        pool={"root": pool},
        search={"evaluations": 12},
        strategy={"popsize": 4},
        fitness={"limit": 4},
        held_out={"limit": 4},
        run_dir=folder / "runs" / "demo",
        display="quiet",
    )
    shutil.copy(run.path / "best" / "recipe.yaml", folder)
    return folder


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name: str, furnished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(furnished)
    monkeypatch.setenv("COLUMNS", "100")
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [found for found in finder.find(module, extraglobs={"evomerge": evomerge}) if found.examples]
    assert tests, f"{name} has no example"
    report: list[str] = []
    for test in tests:
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)

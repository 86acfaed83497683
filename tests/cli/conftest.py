from pathlib import Path

import pytest

from evomerge.cli.main import main
from evomerge.demo.pool import make_demo_pool


@pytest.fixture(scope="session")
def quick_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of the demo's shape that have hardly been trained, with the demo's tasks."""
    return make_demo_pool(tmp_path_factory.mktemp("demo") / "pool", 0, quick=True, progress=False)


@pytest.fixture(scope="session")
def quick_search(quick_pool: Path) -> list[str]:
    """Overrides of a search that takes seconds, whose scores are the stock tool's to the last digit."""
    budget = ["search.evaluations=12", "strategy.popsize=4"]
    return ["experiment=demo", f"pool.root='{quick_pool}'", "fitness.forwards=exact", *budget]


@pytest.fixture(scope="session")
def finished_run(quick_search: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["search", *quick_search, f"run_dir='{folder}'"]) == 0
    return folder

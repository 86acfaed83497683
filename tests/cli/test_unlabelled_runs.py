"""Searches by fitnesses without labels, and by several: gone on with exactly, and on Ray; by statistics too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli.main import main
from evomerge.report.status import read_status
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import canonical_events

KINDS = ("unlabelled", "several")


def words_of(kind: str, pool: Path) -> list[str]:
    """A search of some seconds."""
    few = ["search.evaluations=3", "strategy.popsize=3", "display=quiet", f"pool.root='{pool}'"]
    if kind == "several":
        written = "fitness.parts.closeness.texts.base_samples.write={texts: 4, tokens: 6}"
        return ["experiment=demo_drift", *few, "held_out=null", "fitness.parts.accuracy.limit=2", written]
    own = "{maths: {task: demo_e_maths, expert: math, limit: 4}, said: {write: {texts: 3, tokens: 6}}}"
    folder = f"fitness.include_path='{pool}/tasks'"
    return ["pool=demo", *few, "search_space=by_layer", "fitness=unlabelled", f"fitness.texts={own}", folder]


def told(run: Path) -> list[tuple[int, str, dict[str, float]]]:
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return [(row["candidate"], row["status"], row["objectives"]) for row in rows if row["event"] == "told"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_cut_ends_the_same(kind: str, quick_pool: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["search", *words_of(kind, quick_pool), f"run_dir='{whole}'"]) == 0
    shutil.copytree(whole, cut)
    lines = (cut / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    places = [place for place, line in enumerate(lines) if json.loads(line)["event"] == "told"]
    assert len(places) == 7  # of the pool's models, their average, and the candidates
    (cut / "ledger.jsonl").write_bytes(b"".join(lines[: places[5]]) + lines[places[5]][:40])
    shutil.rmtree(cut / "best")
    (cut / "best").mkdir()
    assert main(["resume", str(cut)]) == 0
    assert canonical_events(RunFolder(cut)) == canonical_events(RunFolder(whole))
    assert (cut / "best" / "recipe.yaml").read_bytes() == (whole / "best" / "recipe.yaml").read_bytes()


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize(
    "kind", [pytest.param("unlabelled", marks=pytest.mark.nightly), "several", "statistics", "rung"]
)
def test_ray_gives_the_same_scores(kind: str, quick_pool: Path, quick_search: list[str], tmp_path: Path) -> None:
    if kind == "statistics":
        files = f"calibration.files=['{quick_pool}/tasks/demo_e_maths.jsonl']"
        words = [*quick_search, "search.evaluations=3", "strategy.popsize=3", "fitness.limit=2", "held_out.limit=2"]
        words += ["search_space=parameter", "search_space.method=fisher", "search_space.components=all"]
        words += ["search_space.layer_group=all", "display=quiet", "calibration=text", files, "calibration.items=3"]
    elif kind == "rung":
        texts = "cheap.texts={maths: {task: demo_e_maths, expert: math, limit: 4}}"
        words = [*quick_search, "search.evaluations=3", "strategy.popsize=3", "fitness.limit=2", "held_out=null"]
        words += ["fitness@cheap=unlabelled", f"cheap.include_path='{quick_pool}/tasks'", texts, "display=quiet"]
    else:
        words = words_of(kind, quick_pool)
    ray = ["evaluator=ray", "evaluator.workers=1", "evaluator.address=auto", "evaluator.shared_cache=off"]
    runs = {}
    for name, more in (("ray", [*ray, "evaluator.threads=1"]), ("here", ["evaluator.threads=1"])):
        runs[name] = tmp_path / name
        assert main(["search", *words, *more, f"run_dir='{runs[name]}'"]) == 0
    assert len(told(runs["ray"])) >= 7
    expected = {"ok", "pruned"} if kind == "rung" else {"ok"}
    assert {status for _, status, _ in told(runs["ray"])} == expected
    assert told(runs["ray"]) == told(runs["here"])
    found: dict[str, Any] = {name: read_status(run).calibration for name, run in runs.items()}
    if kind == "statistics":  # made by the search itself, before its workers read them; once
        assert found["ray"].seconds > 0
        assert found["here"].seconds == 0
    else:
        assert found == {"ray": None, "here": None}

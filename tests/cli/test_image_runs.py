"""A whole search by images on models with batch norms: its table, its export, the export's scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_images import save_classifier, save_images
from transformers import AutoModelForImageClassification

import evomerge
from evomerge.candidate import Candidate
from evomerge.cli.main import main
from evomerge.models.opening import open_pool
from evomerge.run.folder import RunFolder
from evomerge.session.best_folder import BestFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_run")
    for seed, name in enumerate(("base", "one", "two")):
        save_classifier(folder / name, "ResNet", seed)
    save_images(folder / "images", each=16)
    models = ", ".join(f"{name}: {folder / name}" for name in ("base", "one", "two"))
    tasks = f"[{{task: animals, images: {folder / 'images'}, metrics: {{accuracy: 1.0, loss: 0.1}}}}]"
    command = [
        *("search", f"pool.models={{{models}}}", "pool.base=base", "search_space=task_arithmetic"),
        *("fitness=images", f"fitness.tasks={tasks}", "fitness.part=search", "fitness.split={held_out: 0.3}"),
        *(
            "fitness@held_out=images",
            f"held_out.tasks={tasks}",
            "held_out.part=held_out",
            "held_out.split={held_out: 0.3}",
        ),
        *("search.evaluations=6", "strategy.popsize=3", "evaluator.device=cpu", "display=quiet"),
    ]
    assert main([*command, f"run_dir='{folder / 'run'}'"]) == 0
    return folder / "run"


def scores_of(target: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, float]:
    capsys.readouterr()
    assert main(["evaluate", str(target), "--json", *more]) == 0
    found: dict[str, float] = json.loads(capsys.readouterr().out)["metrics"]
    return found


def test_the_export_is_what_was_scored(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 0
    wanted = scores_of(run, capsys, "--held-out")
    row = next(row for row in evomerge.open_run(run).summary.rows if row.kind == "evolved")
    assert row.scores["animals/accuracy"] == wanted["animals/accuracy"]
    asked = (run / "config.yaml").read_text()
    assert "part: held_out" in asked
    images = str(run.parent / "images")
    own = ["fitness=images", f"fitness.tasks=[{{task: animals, images: {images}, metrics: {{accuracy: 1, loss: 1}}}}]"]
    own += ["fitness.part=held_out", "fitness.split={held_out: 0.3}"]
    found = scores_of(tmp_path / "merged", capsys, *own)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert "batch norms are those that its own weights give" in (tmp_path / "merged" / "README.md").read_text()
    # As they are merged they are others, and so are the scores.
    assert main(["merge", str(run), str(tmp_path / "plain"), "--batch-norms", "merged"]) == 0
    other = scores_of(tmp_path / "plain", capsys, *own)
    assert abs(other["animals/loss"] - wanted["animals/loss"]) > 1e-3


def test_python_gives_the_same_model(run: Path, tmp_path: Path) -> None:
    found = evomerge.open_run(run)
    saved = AutoModelForImageClassification.from_pretrained(found.merge(tmp_path / "merged"))
    in_memory = found.model().state_dict()
    assert all(torch.equal(tensor, in_memory[name]) for name, tensor in saved.state_dict().items())
    recipe = found.recipe.merge().state_dict()
    differing = {name for name, tensor in saved.state_dict().items() if not torch.equal(tensor, recipe[name])}
    assert {name.rpartition(".")[2] for name in differing} == {"running_mean", "running_var"}
    assert all(np.isfinite(in_memory[name].numpy()).all() for name in differing)


def test_a_copied_recipe_cannot_know_the_statistics(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "best" / "recipe.yaml", tmp_path / "recipe.yaml")
    assert main(["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "merged")]) == 0
    assert "batch-norm statistics are merged as weights are" in capsys.readouterr().err


def test_images_that_are_gone_are_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = run.parent / "images"
    moved = images.rename(tmp_path / "moved")
    try:
        assert main(["merge", str(run), str(tmp_path / "merged")]) == 2
        assert "which is not there" in (said := capsys.readouterr().err)
        assert "--batch-norms merged" in said
        assert not (tmp_path / "merged").exists()
        assert main(["merge", str(run), str(tmp_path / "merged"), "--batch-norms", "merged"]) == 0
    finally:
        moved.rename(images)


def test_held_out_images_of_the_search_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = run.parent / "images"
    command = ["validate", f"pool.models={{one: {run.parent / 'one'}, two: {run.parent / 'two'}}}"]
    command += ["search_space=linear", "fitness=images", f"fitness.tasks=[{{task: x, images: {images}}}]"]
    command += ["fitness@held_out=images", f"held_out.tasks=[{{task: y, images: {images}}}]"]
    assert main(command) == 2
    assert "all 48 held-out items are items of the search" in capsys.readouterr().err


def test_heads_of_their_own_on_one_encoder_with_batch_norms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every task's folder has the statistics that the encoder was scored with."""
    tasks = []
    for seed, (name, classes) in enumerate({"one": ("cat", "dog", "owl"), "two": ("ant", "bee")}.items()):
        save_classifier(tmp_path / name, "ResNet", seed, classes)
        images = save_images(tmp_path / f"of_{name}", seed, each=8, classes=classes)
        tasks.append(f"{{task: {name}, images: {images}, head: {name}, metrics: [accuracy, loss]}}")
    command = ["search", f"pool.models={{one: {tmp_path / 'one'}, two: {tmp_path / 'two'}}}", "search_space=linear"]
    command += ["search_space.layer_group=all", "fitness=images", f"fitness.tasks=[{', '.join(tasks)}]"]
    command += ["search.evaluations=3", "strategy.popsize=3", "evaluator.device=cpu", "display=quiet"]
    run = tmp_path / "run"
    assert main([*command, f"run_dir='{run}'"]) == 0
    wanted = scores_of(run, capsys)
    assert main(["merge", str(run), str(tmp_path / "all"), "--all-tasks"]) == 0
    for name, task in zip(("one", "two"), tasks, strict=True):
        own = ["fitness=images", f"fitness.tasks=[{task.replace(f'head: {name}, ', '')}]"]
        found = scores_of(tmp_path / "all" / name, capsys, *own)
        assert found == pytest.approx({key: value for key, value in wanted.items() if key in found}, rel=1e-5)
        assert f"{name}/loss" in found


def test_mergekits_file_is_no_advice_where_statistics_are_computed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--format", "mergekit"]) == 0
    said = capsys.readouterr()
    assert "models:" in said.out or "slices:" in said.out
    assert "warning: by mergekit, batch-norm statistics are merged as weights are" in said.err
    assert "`evomerge merge RUN OUT` computes them" in said.err
    assert not RunFolder(run).fits_mergekit()
    lines = RunFolder(run).best_mergekit.read_text().splitlines()
    assert lines[0].startswith("# mergekit makes another model of this than the one that was scored: batch-norm")
    assert lines[1:] == said.out.splitlines()


def test_mergekits_file_is_advice_for_a_source_as_it_is(run: Path, tmp_path: Path) -> None:
    pool = open_pool({name: str(run.parent / name) for name in ("base", "one", "two")}, base="base")
    folder = RunFolder(tmp_path)
    for weights, whole in (({"one": 1.0}, True), ({"one": 0.5, "two": 0.5}, False)):
        incumbent = SimpleNamespace(best=Candidate(len(weights), pool.info.linear(weights)), objectives=("score",))
        BestFolder(folder, pool)(incumbent)  # type: ignore[arg-type]
        assert folder.fits_mergekit() is whole

"""Whole searches by masks: SegFormers with batch norms, and SAMs whose image encoders alone are merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_images import save_masked, save_sam, save_segmenter
from transformers import AutoModelForSemanticSegmentation, SamModel

from evomerge.cli.main import main


def scores_of(target: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, float]:
    capsys.readouterr()
    assert main(["evaluate", str(target), "--json", *more]) == 0
    found: dict[str, float] = json.loads(capsys.readouterr().out)["metrics"]
    return found


def search(folder: Path, task: str, *more: str) -> Path:
    models = ", ".join(f"{name}: {folder / name}" for name in ("base", "one", "two"))
    command = ["search", f"pool.models={{{models}}}", "pool.base=base", "search_space=task_arithmetic", *more]
    for key in ("fitness", "held_out"):
        part = "search" if key == "fitness" else key
        command += ["fitness=segmentation" if key == "fitness" else "fitness@held_out=segmentation"]
        command += [f"{key}.tasks=[{task}]", f"{key}.part={part}", f"{key}.split={{held_out: 0.4}}"]
    command += ["search.evaluations=3", "strategy.popsize=3", "evaluator.device=cpu", "display=quiet"]
    assert main([*command, f"run_dir='{folder / 'run'}'"]) == 0
    return folder / "run"


def test_the_export_is_what_was_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("base", "one", "two")):
        save_segmenter(tmp_path / name, seed)
    data = save_masked(tmp_path / "data", each=8)
    task = f"{{task: shapes, images: {data}, metrics: {{dice: 1.0, loss: 0.1}}}}"
    run = search(tmp_path, task)
    wanted = scores_of(run, capsys)
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 0
    own = ["fitness=segmentation", f"fitness.tasks=[{task}]", "fitness.part=search", "fitness.split={held_out: 0.4}"]
    assert scores_of(tmp_path / "merged", capsys, *own) == pytest.approx(wanted, rel=1e-5)
    assert {"shapes/dice", "shapes/iou", "shapes/miou", "shapes/iou owl"} <= set(wanted)
    saved = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "merged").state_dict()
    sources = [
        AutoModelForSemanticSegmentation.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two")
    ]
    mean = "decode_head.batch_norm.running_mean"
    assert not any(torch.allclose(saved[mean], source[mean]) for source in sources), "it has those of its own weights"
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card
    assert "AutoModelForSemanticSegmentation" in card


def test_heads_of_their_own_keep_their_counts_and_have_statistics_of_the_merged_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("base", "one", "two")):
        save_segmenter(tmp_path / name, seed)
    data = save_masked(tmp_path / "data", each=8)
    task = f"images: {data}, metrics: {{dice: 1.0, loss: 0.1}}"
    tasks = f"{{task: a, head: one, {task}}}, {{task: b, head: two, {task}}}"
    run = search(tmp_path, tasks, "pool.heads=decode_head*")
    wanted = scores_of(run, capsys)
    assert main(["merge", str(run), str(tmp_path / "all"), "--all-tasks"]) == 0
    assert main(["merge", str(run), str(tmp_path / "alone"), "--task", "two"]) == 0
    own = ["fitness=segmentation", "fitness.part=search", "fitness.split={held_out: 0.4}"]
    found = {}
    for place, name, folder in (("a", "one", "all/one"), ("b", "two", "all/two"), ("b", "two", "alone")):
        found = scores_of(tmp_path / folder, capsys, *own, f"fitness.tasks=[{{task: {place}, {task}}}]")
        mine = {key: value for key, value in wanted.items() if key.startswith(f"{place}/")}
        assert found == pytest.approx(mine, rel=1e-5)
        saved, source = (
            AutoModelForSemanticSegmentation.from_pretrained(tmp_path / whose).state_dict() for whose in (folder, name)
        )
        assert torch.equal(saved["decode_head.classifier.weight"], source["decode_head.classifier.weight"])
        assert torch.equal(saved[count := "decode_head.batch_norm.num_batches_tracked"], source[count])
        assert not torch.allclose(saved[mean := "decode_head.batch_norm.running_mean"], source[mean])


@pytest.mark.slow
def test_of_sams_the_image_encoders_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("base", "one", "two")):
        save_sam(tmp_path / name, seed)
    data = save_masked(tmp_path / "data", each=8)
    task = f"{{task: shapes, images: {data}, prompt: box, metrics: {{iou: 1.0, loss: 0.1}}}}"
    kept = 'pool.kept=["prompt_encoder.*", "mask_decoder.*", "shared_image_embedding.*"]'
    run = search(tmp_path, task, kept)
    wanted = scores_of(run, capsys)
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 0
    own = ["fitness=segmentation", f"fitness.tasks=[{task}]", "fitness.part=search", "fitness.split={held_out: 0.4}"]
    assert scores_of(tmp_path / "merged", capsys, *own) == pytest.approx(wanted, rel=1e-5)
    saved, base = (SamModel.from_pretrained(tmp_path / name).state_dict() for name in ("merged", "base"))
    same = {name.split(".")[0] for name, tensor in saved.items() if torch.equal(tensor, base[name])}
    other = {name.split(".")[0] for name, tensor in saved.items() if not torch.equal(tensor, base[name])}
    assert (same, other) == ({"prompt_encoder", "mask_decoder", "shared_image_embedding"}, {"vision_encoder"})

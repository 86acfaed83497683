"""Fitnesses that score models of another kind than the pool's, refused with the one that does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_classifiers import LABELS, rows, save, save_pool, write_rows
from tiny_images import save_classifier, save_images, save_masked, save_segmenter

from evomerge.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("misfits")
    for seed, name in enumerate(("base", "one")):
        save_classifier(made / "vit" / name, "ViT", seed)
        save_segmenter(made / "seg" / name, seed)
        save(made / "bert" / name, seed, LABELS["mood"])
    for seed, (name, classes) in enumerate({"base": ("a", "b"), "one": ("c", "d", "e")}.items()):
        save_classifier(made / "headed" / name, "ViT", seed, classes)
    save_pool(made / "heads")
    save_images(made / "images")
    save_masked(made / "masks")
    write_rows(made / "mood.jsonl", rows(LABELS["mood"], 8, 0))
    return made


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("vit", "classification", "the models are image classifiers (ViTForImageClassification); fitness=images for"),
        (
            "headed",
            "classification",
            "the models are image classifiers (ViTForImageClassification); fitness=images for",
        ),
        ("vit", "lm_eval", "the models are image classifiers (ViTForImageClassification); fitness=images for"),
        ("vit", "segmentation", "the models are image classifiers (ViTForImageClassification); fitness=images for"),
        ("seg", "images", "the models are segmenters (SegformerForSemanticSegmentation); fitness=segmentation for"),
        ("seg", "classification", "the models are segmenters (SegformerForSemanticSegmentation); fitness=segmentation"),
        (
            "bert",
            "images",
            "the models are classifiers of texts (BertForSequenceClassification); fitness=classification",
        ),
        (
            "heads",
            "images",
            "the models are classifiers of texts (BertForSequenceClassification); fitness=classificatio",
        ),
    ],
)
def test_the_fitness_that_scores_such_models_is_named(
    folder: Path, kind: str, given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {
        "classification": f"{{task: mood, file: {folder / 'mood.jsonl'}}}",
        "images": f"{{task: animals, images: {folder / 'images'}}}",
        "segmentation": f"{{task: shapes, images: {folder / 'masks'}}}",
        "lm_eval": "gsm8k",
    }
    names = ("base", "mood", "topic") if kind == "heads" else ("base", "one")
    models = ", ".join(f"{name}: {folder / kind / name}" for name in names)
    words = [f"pool.models={{{models}}}", "pool.base=base", "search_space=linear"]
    assert main(["validate", *words, f"fitness={given}", f"fitness.tasks=[{tasks[given]}]"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    several = ["fitness=several", f"+fitness@fitness.parts.own={given}", f"fitness.parts.own.tasks=[{tasks[given]}]"]
    assert main(["validate", *words, *several]) == 2
    assert said in " ".join(capsys.readouterr().err.split())

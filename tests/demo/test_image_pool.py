"""The demo's image classifiers: pictures that are apart, models of one start, the command, the table of merges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoImageProcessor, AutoModelForImageClassification

from evomerge.cli.main import main
from evomerge.config.compose import compose_config
from evomerge.demo.image_pool import TRAININGS, count_steps, make_image_pool
from evomerge.demo.image_tasks import LABELS, PARTS, TASKS, draw_tasks
from evomerge.demo.image_train import pixels_of
from evomerge.errors import OutputError
from evomerge.session.builders import fitness_from_config
from evomerge.session.pools import pool_from_config


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    steps: list[str] = []
    folder = make_image_pool(tmp_path_factory.mktemp("demo") / "images0", 0, quick=True, each_step=steps.append)
    assert len(steps) == count_steps(quick=True)
    return folder


def test_of_an_original_all_images_are_in_one_part() -> None:
    tasks = draw_tasks(np.random.default_rng(0))
    assert list(tasks) == list(TASKS)
    for part in PARTS:
        labels = [own[part].labels.tolist() for own in tasks.values()]
        assert labels.count(labels[0]) == len(labels), "the same originals in the same order"
    assert sum(len(tasks["plain"][part].labels) for part in PARTS) == 1797
    plain, noisy = (tasks[name]["search"].images.astype(float) for name in ("plain", "noisy"))
    apart = np.abs(plain[:, None] - noisy[None, :20]).mean(axis=(2, 3, 4))
    assert (apart.argmin(axis=0) == np.arange(20)).mean() > 0.8, "a noisy image is its own original's"


def test_the_pools_files_are_what_the_experiments_ask_for(pool: Path) -> None:
    for experiment, training in zip(("demo_images", "demo_resnets"), TRAININGS, strict=True):
        config = compose_config([f"experiment={experiment}", f"pool.root='{pool}'"])
        opened = pool_from_config(config)
        assert opened.info.sources == training.tasks
        for key in ("fitness", "held_out"):
            fitness = fitness_from_config(config, key)
            fitness.check()
            assert list(fitness.items()) == list(training.tasks)
            fitness.check_model(opened.config, str(opened.folder("base")))


def test_models_are_of_one_start_and_read_what_they_learnt_from(pool: Path) -> None:
    base, other = (AutoModelForImageClassification.from_pretrained(pool / "vit" / name) for name in ("base", "noisy"))
    apart = [(a - b).abs().max().item() for a, b in zip(base.parameters(), other.parameters(), strict=True)]
    assert 0 < max(apart) < 0.1
    assert list(base.config.id2label.values()) == list(LABELS)
    images = draw_tasks(np.random.default_rng(0))["faint"]["search"].images[:3]
    processor = AutoImageProcessor.from_pretrained(pool / "vit" / "noisy")
    np.testing.assert_allclose(
        processor(list(images), return_tensors="np")["pixel_values"], pixels_of(images), atol=1e-6
    )


def test_it_is_made_once_and_nothing_else_is_replaced(pool: Path, tmp_path: Path) -> None:
    made: list[str] = []
    make_image_pool(pool, 0, quick=True, each_step=made.append)
    assert not made
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="holds no image classifiers of a demo"):
        make_image_pool(tmp_path, 0, quick=True, each_step=made.append)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images"], "--images without --pool-only"),
        (["--images", "--pool-only", "search.seed=1"], "--images with overrides"),
        (["--images", "--pool-only", "--seed", "-1", "--quick", "-q"], "the seed is -1"),
    ],
)
def test_what_the_command_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *words]) == 2
    assert message in capsys.readouterr().err

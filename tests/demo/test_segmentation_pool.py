"""The demo's segmenters: canvases with right masks, models that can be searched, the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evomerge.cli.main import main
from evomerge.config.compose import compose_config
from evomerge.demo.segmentation import CLASSES, CONDITIONS, QUICK, draw_canvases, make_segmentation
from evomerge.session.builders import fitness_from_config
from evomerge.session.pools import pool_from_config


def test_masks_say_which_pixels_are_of_a_digit() -> None:
    drawn = draw_canvases(np.random.default_rng(0), QUICK)
    images, masks = drawn["plain"]["search"]
    assert images.shape == (6, 32, 32, 3)
    assert masks.shape == (6, 32, 32)
    bright = images[..., 0] > 0.4 * 255 + 1
    assert (masks[bright] > 0).all()
    assert (masks[images[..., 0] < 0.4 * 255 - 1] == 0).all()
    for mask in masks:
        assert all(len(set(np.unique(half).tolist()) - {0}) == 1 for half in (mask[:, :16], mask[:, 16:]))
    for name in CONDITIONS:
        assert np.array_equal(drawn[name]["search"][1], masks)
        assert not np.array_equal(drawn[name]["search"][0], images)


@pytest.mark.slow
def test_the_experiment_reads_what_is_made_once(tmp_path: Path) -> None:
    steps: list[str] = []
    pool = make_segmentation(tmp_path / "pool", quick=True, threads=1, each_step=steps.append)
    assert (steps.count("base"), steps.count("faint"), len(steps)) == (
        QUICK.start,
        QUICK.steps,
        QUICK.start + 4 * QUICK.steps,
    )
    make_segmentation(pool, quick=True, threads=1, each_step=steps.append)
    assert len(steps) == QUICK.start + 4 * QUICK.steps
    config = compose_config(["experiment=demo_segmentation", f"pool.root='{pool}'"])
    opened = pool_from_config(config)
    assert opened.info.sources == CONDITIONS
    for key, count in (("fitness", QUICK.search), ("held_out", QUICK.held_out)):
        fitness = fitness_from_config(config, key)
        fitness.check()
        fitness.check_model(opened.config, str(opened.folder("base")))
        assert fitness.items() == dict.fromkeys(CONDITIONS, count)
    numbers = np.unique(np.asarray(Image.open(pool / "data" / "noisy" / "held_out" / "masks" / "0000.png")))
    assert numbers.max() < len(CLASSES)


def test_what_the_command_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--segmentation", "--retrieval"]) == 2
    assert "--retrieval and --segmentation" in capsys.readouterr().err
    assert main(["demo", "--segmentation", "--adapters", "3", "--pool-only"]) == 2
    assert "--segmentation and --adapters" in capsys.readouterr().err

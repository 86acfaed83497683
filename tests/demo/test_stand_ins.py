"""The models that stand in for published ones: of the shapes that are told apart, with items in one part each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.comparison.plan import Plan
from evomerge.comparison.settings import STAND_IN, names
from evomerge.demo.clip_pool import LARGE, ClipSizes
from evomerge.demo.glue import PARTS, QUICK, make_glue
from evomerge.demo.glue_texts import COLUMNS, LABELS
from evomerge.demo.stand_ins import MAKERS, make_stand_in
from evomerge.errors import ConfigError


def test_every_stand_in_has_a_maker_and_a_folder_of_its_own() -> None:
    plans = [Plan.of(f"{name}{STAND_IN}", ["run_dir=x"]) for name in names()]
    assert all(plan.protocol.stand_in in MAKERS for plan in plans)
    assert len({plan.config.pool.root for plan in plans}) == len(plans)


def test_the_large_clips_are_larger_than_the_small_ones(tmp_path: Path) -> None:
    shapes = []
    for kind in ("clips", "large_clips"):
        make_stand_in(kind, tmp_path / kind, 0, quick=True, say=lambda text: None)
        shapes.append(json.loads((tmp_path / kind / "mnist" / "config.json").read_text())["vision_config"])
    assert shapes[0]["num_hidden_layers"] < shapes[1]["num_hidden_layers"]
    assert (LARGE.width, LARGE.layers) > (ClipSizes().width, ClipSizes().layers)


def test_a_text_of_glue_is_in_one_part_for_all_tasks(tmp_path: Path) -> None:
    folder = make_glue(tmp_path / "glue", 0, quick=True)
    found: dict[str, set[str]] = {part: set() for part in PARTS}
    for part in PARTS:
        for task in LABELS:
            lines = (folder / "data" / f"{task}-{part}.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            assert rows
            assert len(rows) <= -(-getattr(QUICK, part) // len(LABELS[task])) * len(LABELS[task])
            first, second = COLUMNS[task]
            whole = [row for row in rows if second is None and (task != "cola" or row["label"] == 1)]
            found[part] |= {row[first].lower() for row in whole}
    for part, texts in found.items():
        assert texts
        others = set().union(*(own for name, own in found.items() if name != part))
        assert not texts & others


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_pool_that_is_there_is_not_made_again(kind: str, tmp_path: Path) -> None:
    told: list[str] = []
    make_stand_in(kind, tmp_path / "pool", 0, quick=True, say=told.append)
    manifest = (tmp_path / "pool" / "manifest.json").stat()
    told.clear()
    make_stand_in(kind, tmp_path / "pool", 0, quick=True, say=told.append)
    assert not told
    assert (tmp_path / "pool" / "manifest.json").stat().st_ino == manifest.st_ino


def test_a_maker_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'large_clip'.*'large_clips'"):
        make_stand_in("large_clip", tmp_path / "pool", 0)

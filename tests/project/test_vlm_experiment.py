"""EvoLLM's vision-language experiment on stand-ins of the same classes and depths, and on made-up items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vlm_models import save_vlm, save_words

from evomerge import conf_dir
from evomerge.config.compose import compose_config
from evomerge.merge.methods import specs
from evomerge.session.parts import build_parts


def save_items(file: Path) -> None:
    from datasets import Dataset
    from PIL import Image

    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)) for _ in range(3)]
    rows = [
        {"image": image, "question": "何ですか?", "answer": own} for image, own in zip(images, "猫犬鳥", strict=True)
    ]
    Dataset.from_list(rows).to_parquet(file)


@pytest.mark.slow
def test_the_search_is_the_one_that_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JA_VQA", str(tmp_path))
    config: Any = compose_config(["experiment=evollm_vlm"])
    assert list(config.pool.models) == ["base", "llava", "shisa"]
    depth = {"num_hidden_layers": 32}
    config.pool.models = {
        "base": str(save_words(tmp_path / "base", "llava_next", 0, **depth)),
        "llava": str(save_vlm(tmp_path / "llava", "llava_next", 1, **depth)),
        "shisa": str(save_words(tmp_path / "shisa", "llava_next", 2, **depth)),
    }
    for name in ("ja_vqa_search", "ja_vqa_held_out"):
        save_items(tmp_path / f"{name}.parquet")
    config.fitness.apply_chat_template = config.held_out.apply_chat_template = False  # stand-ins have no template
    parts = build_parts(config)
    assert parts.pool is not None
    kept = parts.pool.info.kept
    assert kept is not None
    assert (kept.model, parts.pool.info.layers) == ("llava", 32)
    assert "model.vision_tower.*" in kept.tensors
    assert "model.multi_modal_projector.*" in kept.tensors
    (phase,) = parts.phases
    space = phase.space(None)
    assert len(space.spec) == 4  # a weight and a density for each of two models
    recipe = space.decode(space.spec.initial)
    recipe.check(specs())
    assert {name for name, _ in recipe.models} == {"base", "llava", "shisa"}
    assert phase.evaluations == config.search.evaluations == 500
    assert phase.strategy(space.spec, {}).ask()
    assert parts.fitness.items() == {"ja_vqa_search": 3}
    assert parts.held_out is not None
    assert parts.held_out.items() == {"ja_vqa_held_out": 3}


def test_the_comment_says_what_it_costs() -> None:
    text = (conf_dir() / "experiment" / "evollm_vlm.yaml").read_text()
    seconds = 2 * 7.24e9 * 500 * (2940 / 0.4 + 40 / 0.04) / 989e12
    assert seconds == pytest.approx(61, abs=1)
    assert f"/ 989e12 = {round(seconds)}" in text
    assert 500 * seconds / 3600 == pytest.approx(8.5, abs=0.1)
    assert "8 GPU-hours" in text

"""Pipelines and single files that are written: the same pixels, the original names, and one search from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import pipeline, save_pool

from evomerge.errors import EvomergeError
from evomerge.export.pipeline_writer import write_pipeline
from evomerge.export.single_file_writer import write_single_file
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import pool_of_recipe
from evomerge.models.pipelines.opening import open_pipelines
from evomerge.models.pipelines.original_names import original_names
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe
from evomerge.recipes.yaml_reader import read_recipe_file


def mixed(pool: Pool) -> Recipe:
    """A weighted sum with a weight for each slice."""
    slices = []
    for place, slice_ in enumerate(pool.info.slices):
        weight = (place % 7) / 6
        inputs = (Input("one", None, (("weight", 1 - weight),)), Input("two", None, (("weight", weight),)))
        slices.append(SliceRecipe(slice_, "linear", inputs, (("normalize", False),)))
    return pool.info.recipe(slices)


@pytest.mark.parametrize("kind", ["sd", *(pytest.param(k, marks=pytest.mark.slow) for k in ("sdxl", "flux", "digits"))])
def test_what_is_written_draws_what_the_search_drew(kind: str, tmp_path: Path) -> None:
    import diffusers

    from evomerge.models.pipelines.assembling import assemble

    pool = open_pipelines(save_pool(tmp_path, kind), "base")
    recipe = mixed(pool)
    resident = Resident(pool)
    arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np"}
    if kind == "digits":
        arguments["batch_size"] = 2
    else:
        arguments |= {"prompt": ["a cat", "an owl"], "height": 16, "width": 16}
    arguments |= {"max_sequence_length": 12} if kind == "flux" else {}
    held = assemble(resident.model.module, pool.config.rest, torch.float32, torch.device("cpu"))

    def draw(own: Any) -> Any:
        return own(**arguments, generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)]).images

    before = draw(held)
    resident.apply(make_plan(recipe, pool))
    drawn = draw(held)
    assert not np.array_equal(before, drawn)
    out = write_pipeline(recipe, pool, tmp_path / "out")
    written = diffusers.DiffusionPipeline.from_pretrained(str(out))
    assert type(written).__name__ == pool.config.rest.pipeline
    written.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(written), drawn)
    again = read_recipe_file(out / "evomerge_recipe.yaml")
    assert again == recipe
    assert pool_of_recipe(again).info.slices == pool.info.slices
    card = (out / "README.md").read_text()
    assert f"Merged is the {recipe.network.name if recipe.network else ''} of a {pool.config.rest.pipeline}." in card
    assert "library_name: diffusers" in card
    for slice_, tensors in pool.layout.tensors.items():  # by hand, from the files
        weight = (pool.info.slices.index(slice_) % 7) / 6
        part = load_file(out / pool.config.rest.network / "diffusion_pytorch_model.safetensors")
        for name in tensors:
            wanted = (1 - weight) * pool.read("one", name).double() + weight * pool.read("two", name).double()
            assert torch.allclose(part[name].double(), wanted, rtol=0, atol=1e-6), name


def test_a_single_file_has_the_original_names(tmp_path: Path) -> None:
    folders = save_pool(tmp_path, "sd")
    pool = open_pipelines(folders, "base")
    recipe = mixed(pool)
    folder, file = write_pipeline(recipe, pool, tmp_path / "out"), tmp_path / "out.safetensors"
    write_single_file(recipe, pool, file)
    whole, single = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"), load_file(file)
    names = original_names(json.loads((folder / "unet" / "config.json").read_text()), whole)
    assert set(single) == set(names.values())
    assert "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.attn2.to_k.weight" in single
    assert all(torch.equal(single[names[name]], tensor) for name, tensor in whole.items())
    with pytest.raises(EvomergeError, match="is there already"):
        write_single_file(recipe, pool, file)
    # Of a pool whose first model is such a file: what else that holds is kept.
    save_file(single | {"cond_stage_model.x": torch.arange(3.0)}, tmp_path / "first.safetensors")
    files = {"one": str(tmp_path / "first.safetensors"), "two": folders["two"]}
    again = open_pipelines(files, others=folders["base"])
    out = write_single_file(again.info.linear({"one": 1.0}), again, tmp_path / "again.safetensors")
    kept = load_file(out)
    assert kept.pop("cond_stage_model.x").tolist() == [0.0, 1.0, 2.0]
    assert all(torch.equal(kept[name], tensor) for name, tensor in single.items())
    from diffusers import UNet2DConditionModel

    read = UNet2DConditionModel.from_single_file(str(out), config=folders["base"], subfolder="unet")
    assert all(torch.equal(own, whole[name]) for name, own in read.state_dict().items())
    assert pipeline("digits").unet.config.in_channels == 1

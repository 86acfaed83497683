"""Pools of pipelines: which part is merged, its layers and components, single files, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import flux_network, save_pool, sd_network, sdxl_network

from evomerge.errors import ConfigError, EvomergeError, PoolError
from evomerge.models.pipelines.blocks import blocks_of, layout_of_network
from evomerge.models.pipelines.opening import open_pipelines
from evomerge.models.pipelines.original_names import original_names
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceId
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_pool(tmp_path_factory.mktemp("sd"), "sd")


@pytest.fixture(scope="module")
def pool(sd: dict[str, str]) -> Pool:
    return open_pipelines(sd, "base")


def test_layers_of_a_u_net_are_those_of_its_single_files(pool: Pool) -> None:
    # down: a layer each, and the first block's downsampler; the middle; up: two layers each.
    assert pool.info.blocks == (("down.0", 2), ("down.1", 1), ("mid", 1), ("up.0", 2), ("up.1", 2))
    assert pool.info.layers == 8
    names = original_names(pool.config.values, pool.layout.parameters)
    blocks = {}
    for slice_, tensors in pool.layout.tensors.items():
        if slice_.layer is not None:
            blocks.setdefault(slice_.layer, set()).update(".".join(names[name].split(".")[2:4]) for name in tensors)
    assert blocks == {
        0: {"input_blocks.1"},
        1: {"input_blocks.2"},
        2: {"input_blocks.3"},
        3: {"middle_block.0", "middle_block.1", "middle_block.2"},
        4: {"output_blocks.0"},
        5: {"output_blocks.1"},
        6: {"output_blocks.2"},
        7: {"output_blocks.3"},
    }


COMPONENTS = {
    "down_blocks.0.resnets.0.conv1.weight": "layers.0.resnet",
    "down_blocks.0.resnets.0.norm1.weight": "layers.0.norm",
    "down_blocks.0.resnets.0.time_emb_proj.bias": "layers.0.time",
    "down_blocks.0.attentions.0.proj_in.weight": "layers.0.attn",
    "down_blocks.0.attentions.0.norm.weight": "layers.0.norm",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": "layers.0.attn",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight": "layers.0.mlp",
    "down_blocks.0.attentions.0.transformer_blocks.0.norm3.bias": "layers.0.norm",
    "down_blocks.0.downsamplers.0.conv.weight": "layers.1.resnet",
    "mid_block.resnets.1.conv2.weight": "layers.3.resnet",
    "up_blocks.0.upsamplers.0.conv.weight": "layers.5.resnet",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0.bias": "layers.7.attn",
    "conv_in.weight": "embed",
    "time_embedding.linear_2.bias": "time_embed",
    "conv_norm_out.weight": "final_norm",
    "conv_out.bias": "head",
}


def test_components_of_a_u_net(pool: Pool) -> None:
    assert {name: str(pool.layout.slice_of(name)) for name in COMPONENTS} == COMPONENTS
    assert sorted(name for own in pool.layout.tensors.values() for name in own) == sorted(sd_network().state_dict())


def test_double_and_single_blocks_of_a_transformer() -> None:
    with torch.device("meta"):
        network = flux_network()
    layout, blocks = layout_of_network(network)
    assert blocks.names == (("double", 2), ("single", 1))
    wanted = {
        "transformer_blocks.1.attn.to_q.weight": "layers.1.attn",
        "transformer_blocks.1.attn.add_k_proj.bias": "layers.1.attn",
        "transformer_blocks.1.attn.norm_q.weight": "layers.1.norm",
        "transformer_blocks.1.norm1.linear.weight": "layers.1.time",
        "transformer_blocks.0.ff_context.net.2.weight": "layers.0.mlp",
        "single_transformer_blocks.0.norm.linear.bias": "layers.2.time",
        "single_transformer_blocks.0.proj_mlp.weight": "layers.2.mlp",
        "single_transformer_blocks.0.attn.to_v.weight": "layers.2.attn",
        "time_text_embed.timestep_embedder.linear_1.weight": "time_embed",
        "context_embedder.weight": "embed",
        "x_embedder.bias": "embed",
        "norm_out.linear.weight": "final_norm",
        "proj_out.weight": "head",
    }
    assert {name: str(layout.slice_of(name)) for name in wanted} == wanted


def test_attention_of_sdxl_and_its_added_embedding() -> None:
    with torch.device("meta"):
        network = sdxl_network()
    layout, _ = layout_of_network(network)
    assert str(layout.slice_of("add_embedding.linear_1.weight")) == "time_embed"
    assert str(layout.slice_of("down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q.weight")) == "layers.2.attn"
    assert SliceId("attn", 0) not in layout.tensors


def test_a_recipe_keeps_the_network_and_whose_the_others_are(pool: Pool) -> None:
    recipe: Recipe = pool.info.linear({"one": 0.25, "two": 0.75})
    assert recipe.network is not None
    assert (recipe.network.name, recipe.network.others) == ("unet", "base")
    again = load_recipe(dump_recipe(recipe))
    assert again == recipe
    assert again.hash == recipe.hash
    assert "network:\n  name: unet\n  others: base\n" in dump_recipe(recipe)


def single_file(folder: str, out: Path) -> Path:
    """The network of a pipeline's folder in a single file, with a tensor of an autoencoder beside it."""
    own = load_file(Path(folder) / "unet" / "diffusion_pytorch_model.safetensors")
    names = original_names(json.loads((Path(folder) / "unet" / "config.json").read_text()), own)
    state = {names[name]: tensor for name, tensor in own.items()}
    save_file(state | {"first_stage_model.encoder.conv_in.weight": torch.ones(2, 3)}, out)
    return out


def test_a_single_file_is_the_folder_that_it_was_made_of(sd: dict[str, str], tmp_path: Path) -> None:
    file = single_file(sd["one"], tmp_path / "one.safetensors")
    mixed = open_pipelines({"base": sd["base"], "one": str(file)}, "base")
    checkpoint: Any = mixed.checkpoints["one"]
    whole = load_file(Path(sd["one"]) / "unet" / "diffusion_pytorch_model.safetensors")
    assert set(checkpoint.tensors) == set(whole)
    for name, tensor in whole.items():
        assert torch.equal(mixed.read("one", name), tensor), name
    assert all(len(runs) == 1 for runs in checkpoint.runs.values())
    folders = open_pipelines({"base": sd["base"], "one": sd["one"]}, "base")
    assert folders.info.slices == mixed.info.slices


def test_rows_of_a_transformer_that_are_cut_and_swapped(tmp_path: Path) -> None:
    """Of FLUX, whose conversion takes its width for granted: rows are looked at, not the files of so large a model."""
    from evomerge.models.checkpoints.headers import TensorInfo
    from evomerge.models.pipelines.single_file import runs_of

    width = 3072
    shapes = {"img_in": (width, 64), "txt_in": (width, 4096), "final_layer.linear": (64, width)}
    shapes |= {
        f"{part}.{at}_layer": (width, 256) for part in ("time_in", "vector_in", "guidance_in") for at in ("in", "out")
    }
    shapes |= {"final_layer.adaLN_modulation.1": (2 * width, width)}
    for side in ("img", "txt"):
        own = f"double_blocks.0.{side}"
        shapes |= {f"{own}_mod.lin": (6 * width, width), f"{own}_attn.qkv": (3 * width, width)}
        shapes |= {
            f"{own}_attn.proj": (width, width),
            f"{own}_mlp.0": (4 * width, width),
            f"{own}_mlp.2": (width, 4 * width),
        }
    shapes |= {"single_blocks.0.modulation.lin": (3 * width, width), "single_blocks.0.linear1": (7 * width, width)}
    shapes |= {"single_blocks.0.linear2": (width, 5 * width)}
    infos = {}
    for name, (rows, columns) in shapes.items():
        infos[f"{name}.weight"], infos[f"{name}.bias"] = (rows, columns), (rows,)
    for block in ("double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0"):
        for part in ("query", "key"):
            infos[f"{block}.norm.{part}_norm.scale"] = (128,)
    original = {n: TensorInfo(n, "BF16", shape, tmp_path, 2, 0) for n, shape in infos.items()}
    runs = runs_of(original, {"_class_name": "FluxTransformer2DModel"}, tmp_path / "flux.safetensors")
    assert runs["transformer_blocks.0.attn.to_k.weight"] == (("double_blocks.0.img_attn.qkv.weight", width, 2 * width),)
    assert runs["transformer_blocks.0.attn.add_v_proj.bias"] == (
        ("double_blocks.0.txt_attn.qkv.bias", 2 * width, 3 * width),
    )
    assert runs["single_transformer_blocks.0.proj_mlp.weight"] == (
        ("single_blocks.0.linear1.weight", 3 * width, 7 * width),
    )
    swapped = "final_layer.adaLN_modulation.1.weight"
    assert runs["norm_out.linear.weight"] == ((swapped, width, 2 * width), (swapped, 0, width))


def edited(source: str, out: Path, file: str, **values: Any) -> str:
    """A copy of a pipeline's folder with other settings in one of its files."""
    shutil.copytree(source, out)
    path = out / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return str(out)


def test_networks_that_compute_otherwise_are_refused(sd: dict[str, str], tmp_path: Path) -> None:
    other = edited(sd["one"], tmp_path / "act", "unet/config.json", act_fn="gelu")
    with pytest.raises(PoolError, match="act_fn gelu"):
        open_pipelines({"base": sd["base"], "other": other}, "base")
    other = edited(sd["one"], tmp_path / "kind", "scheduler/scheduler_config.json", prediction_type="v_prediction")
    with pytest.raises(PoolError, match="it predicts v_prediction"):
        open_pipelines({"base": sd["base"], "other": other}, "base")
    other = edited(sd["one"], tmp_path / "size", "unet/config.json", sample_size=64)
    assert open_pipelines({"base": sd["base"], "other": other}, "base").info.layers == 8
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "config.json").write_text("{}")
    said = (
        r"model 'words': .*words has neither model_index.json nor a network in transformer or unet, but a model of tr"
    )
    for models in ({"words": str(tmp_path / "words")}, {**sd, "words": str(tmp_path / "words")}):
        with pytest.raises(PoolError, match=said):
            open_pipelines(models)


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"network": "unett"}, PoolError, r"pool\.network: .* has no part 'unett'"),
        (
            {"network": "text_encoder"},
            PoolError,
            r"pool\.network: part 'text_encoder' .* a CLIPTextModel of transformers",
        ),
        ({"network": "vae"}, PoolError, r"pool\.network: part 'vae' .* is an? AutoencoderKL.*set pool\.network=auto"),
        ({"network": "scheduler"}, PoolError, r"pool\.network: part 'scheduler' .* is an? DDIMScheduler"),
        ({"others": "bass"}, PoolError, "pool.others is 'bass'"),
        ({"base": "bass"}, ConfigError, "pool.base is 'bass'"),
    ],
)
def test_a_typo_is_answered_with_what_was_meant(
    sd: dict[str, str], more: dict[str, str], kind: type[EvomergeError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        open_pipelines(sd, **{"base": "base", **more})


def test_parts_around_another_network_are_refused(sd: dict[str, str], tmp_path: Path) -> None:
    other = save_pool(tmp_path, "sdxl", ("base",))["base"]
    with pytest.raises(PoolError, match=r"pool\.others is .*a StableDiffusionXLPipeline around another network"):
        open_pipelines(sd, "base", others=other)
    alike = tmp_path / "alike"
    shutil.copytree(sd["two"], alike)
    assert open_pipelines(sd, "base", others=str(alike)).config.rest.folder == alike


def test_nothing_but_single_files_need_a_folder_beside_them(sd: dict[str, str], tmp_path: Path) -> None:
    files = {name: str(single_file(sd[name], tmp_path / f"{name}.safetensors")) for name in ("one", "two")}
    with pytest.raises(ConfigError, match=r"pool\.others is not set"):
        open_pipelines(files)
    made = open_pipelines(files, others=sd["base"])
    assert made.info.network is not None
    assert made.info.network.others == sd["base"]


def test_layers_stay_where_they_are(pool: Pool) -> None:
    assert blocks_of(sd_network()).names == pool.info.blocks
    with pytest.raises(EvomergeError, match="slice"):
        pool.layout.of_slice(SliceId("attn", 99))
    assert pool.info.immovable

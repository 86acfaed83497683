"""M2N2's experiment on networks of SDXL's true shape: configuration and header, a hole for the numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_pipelines import save_clip

from evomerge.cli.main import main

NETWORK = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.19.0.dev0",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_num_groups": 32,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
"""unet/config.json of stabilityai/stable-diffusion-xl-base-1.0, without what is null there."""
PARAMETERS = 2_567_463_684
INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
NAMES = ("japanese", "sdxl", "dpo", "juggernaut")


@pytest.fixture(scope="module")
def header() -> tuple[bytes, int]:
    """That of the network in float16, and how many bytes follow."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        shapes = {name: list(own.shape) for name, own in UNet2DConditionModel.from_config(NETWORK).state_dict().items()}
    assert sum(map(math.prod, shapes.values())) == PARAMETERS
    content: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        content[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    return json.dumps(content).encode(), end


@pytest.fixture
def words(header: tuple[bytes, int], tmp_path: Path) -> list[str]:
    """The command line of the experiment on four such networks."""
    text, size = header
    begins = [own["data_offsets"][0] for own in json.loads(text).values()]
    for number, name in enumerate(NAMES):
        folder = tmp_path / name
        (folder / "unet").mkdir(parents=True)
        (folder / "scheduler").mkdir()
        (folder / "model_index.json").write_text(json.dumps(INDEX))
        (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
        (folder / "unet" / "config.json").write_text(json.dumps(NETWORK))
        with (folder / "unet" / "diffusion_pytorch_model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for begin in begins:  # no two models have equal tensors
                file.seek(8 + len(text) + begin)
                file.write(bytes([number + 1]))
            file.truncate(8 + len(text) + size)
    Image.new("RGB", (8, 8)).save(tmp_path / "bicycle.jpg")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "自転車", "image": "bicycle.jpg"}\n' * 3, encoding="utf-8")
    models = ", ".join(f"{name}: {name}" for name in NAMES)
    given = ["experiment=m2n2_sdxl", f"pool.models={{{models}}}", f"pool.root={tmp_path}"]
    clip = save_clip(tmp_path / "clip")
    given += [f"{split}.{key}" for split in ("fitness", "held_out") for key in (f"prompts={prompts}", f"clip={clip}")]
    return [*given, f"run_dir={tmp_path / 'run'}"]


@pytest.mark.slow
def test_the_experiment_is_valid_for_networks_of_sdxls_shape(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", *words]) == 0
    said = capsys.readouterr().out
    assert "sdxl (5.13 GB)" in said
    assert "of japanese; merged is the unet" in said
    assert "18 layers, 76 slices, float16" in said  # 8 down, the middle, 9 up
    assert not (tmp_path / "run").exists()
    config = tmp_path / "dpo" / "unet" / "config.json"
    config.write_text(json.dumps({**NETWORK, "cross_attention_dim": 1024}))
    assert main(["validate", *words]) == 2
    assert "model 'dpo' has cross_attention_dim 1024" in capsys.readouterr().err

"""Tiny pipelines that draw images, made from configurations: SD's, SDXL's and FLUX's kinds, and one without prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_BLOCKS: dict[str, Any] = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "projection_dim": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def tokenizer() -> Any:
    """CLIP's, of letters."""
    from transformers import CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    return CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[], model_max_length=12)


def text_encoder(projected: bool = False) -> Any:
    """CLIP's text tower."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(vocab_size=2 + 2 * len(_LETTERS), **_TEXT)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def autoencoder(channels: int = 4) -> Any:
    """From latents of 8 by 8 to images of 16 by 16."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
        shift_factor=0.0,
        scaling_factor=0.5,
    ).eval()


def sd_network(**more: Any) -> Any:
    """SD's."""
    from diffusers import UNet2DConditionModel

    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**{**_BLOCKS, **kinds, "cross_attention_dim": 16, **more})


def sdxl_network() -> Any:
    """SDXL's, of which the second resolution has attention."""
    return sd_network(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * 6 + 16,
    )


def flux_network() -> Any:
    """FLUX's: two double blocks and one single."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
    )


def digits_network() -> Any:
    """Of images themselves, without prompts."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        **_BLOCKS,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def pipeline(kind: str, seed: int = 0) -> Any:
    """A pipeline of a kind: ``sd``, ``sdxl``, ``flux`` or ``digits``; random, no parameter zero or one."""
    import diffusers as d

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "digits":
            made = d.DDIMPipeline(digits_network(), d.DDIMScheduler(num_train_timesteps=100))
        elif kind == "flux":
            made = d.FluxPipeline(
                d.FlowMatchEulerDiscreteScheduler(),
                autoencoder(1),
                text_encoder(),
                tokenizer(),
                _t5(),
                tokenizer(),
                flux_network(),
            )
        else:
            scheduler = d.DDIMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
            )
            parts = {"vae": autoencoder(), "text_encoder": text_encoder(), "tokenizer": tokenizer()}
            if kind == "sdxl":
                parts |= {"text_encoder_2": text_encoder(True), "tokenizer_2": tokenizer(), "unet": sdxl_network()}
                made = d.StableDiffusionXLPipeline(**parts, scheduler=scheduler, add_watermarker=False)
            else:
                parts |= {"unet": sd_network(), "safety_checker": None, "feature_extractor": None}
                made = d.StableDiffusionPipeline(**parts, scheduler=scheduler, requires_safety_checker=False)
        _shake(network_of(made), seed)
    return made


def network_of(made: Any) -> Any:
    """The part of a pipeline that is merged."""
    return made.transformer if getattr(made, "transformer", None) is not None else made.unet


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=2 + 2 * len(_LETTERS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def _shake(module: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


def save_pool(folder: Path, kind: str, names: Sequence[str] = ("base", "one", "two")) -> dict[str, str]:
    """Pipelines that differ in their network alone: the first whole, the others near it; by name their folders."""
    made = pipeline(kind)
    network = network_of(made)
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for number, name in enumerate(names):
        network.load_state_dict(first)
        if number:
            _shake(network, number)
        made.save_pretrained(folder / name)
    return {name: str(folder / name) for name in names}


def rows_of_prompts(path: Path, prompts: Sequence[str], images: Sequence[str] = ()) -> Path:
    """A file of prompts, with reference images where they are given."""
    rows = [{"prompt": prompt} | ({"image": images[n]} if images else {}) for n, prompt in enumerate(prompts)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def save_clip(folder: Path) -> Path:
    """A model of images and texts in one space, with its image processor and tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    text = {"vocab_size": 2 + 2 * len(_LETTERS), **_TEXT}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    size = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)
    return folder

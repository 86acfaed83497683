"""Tiny image models, their processors, and images of random pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import write_tokenizer

CLASSES = ("cat", "dog", "owl")
SIZE = 32
_TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_STAGES = {"hidden_sizes": [6, 8], "depths": [1, 2]}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTConfig", {**_TOWER, "image_size": SIZE, "patch_size": 16}),
    "Dinov2": ("Dinov2Config", {**_TOWER, "image_size": SIZE, "patch_size": 16}),
    "ConvNext": ("ConvNextConfig", {**_STAGES, "num_stages": 2}),
    "ResNet": ("ResNetConfig", {**_STAGES, "embedding_size": 6, "layer_type": "basic"}),
    "Swin": (
        "SwinConfig",
        {"image_size": SIZE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    ),
}
"""Of classifiers, by the beginning of their classes' names."""


def save_images(folder: Path, seed: int = 0, each: int = 4, classes: Sequence[str] = CLASSES) -> Path:
    """Images of other sizes than the models', in a folder for each class; the classes differ in brightness."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(60 * place, 60 * place + 120, (20, 24 + number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def save_processor(folder: Path, size: int = SIZE) -> None:
    """Beside a model, an image processor that makes squares."""
    from transformers import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)


def _save(model: Any, folder: Path) -> Path:
    from transformers.utils import logging

    logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(int(torch.randint(0, 2**31, ())))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dtype == torch.float32 and not name.endswith("running_var"):
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    model.save_pretrained(folder)
    save_processor(folder)
    return folder


def save_classifier(folder: Path, kind: str = "ViT", seed: int = 0, classes: Sequence[str] = CLASSES) -> Path:
    """A classifier of `CONFIGS` with random weights."""
    import transformers

    name, values = CONFIGS[kind]
    labels = {"id2label": dict(enumerate(classes)), "label2id": {own: i for i, own in enumerate(classes)}}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = getattr(transformers, name)(**values, **labels)
        return _save(getattr(transformers, f"{kind}ForImageClassification")(config), folder)


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A whole CLIP model with a tokenizer of the words w4 to w39."""
    from transformers import CLIPConfig, CLIPModel

    text = {**_TOWER, "vocab_size": 40, "max_position_embeddings": 12}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**_TOWER, "hidden_size": 24, "num_hidden_layers": 3, "image_size": SIZE, "patch_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _save(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)), folder)
    write_tokenizer(folder)
    return folder


def save_segmenter(folder: Path, seed: int = 0, classes: Sequence[str] = CLASSES) -> Path:
    """A SegFormer with random weights, and a processor that makes squares."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

    labels = {"id2label": dict(enumerate(classes)), "label2id": {own: i for i, own in enumerate(classes)}}
    stages: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_attention_heads": [1, 2]}
    stages |= {"sr_ratios": [2, 1], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = SegformerConfig(num_encoder_blocks=2, decoder_hidden_size=16, **stages, **labels)
        _save(SegformerForSemanticSegmentation(config), folder)
    SegformerImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def save_sam(folder: Path, seed: int = 0, *, encoder: bool = False) -> Path:
    """A SAM with random weights, or its image encoder alone, and a processor that pads."""
    from transformers import SamConfig, SamImageProcessorPil, SamModel, SamVisionModel

    sizes = {"image_size": SIZE, "patch_size": 8}
    vision = {**sizes, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 24}
    vision |= {"output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 8}
    decoder = {"hidden_size": 16, "mlp_dim": 24, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SamModel(
            SamConfig(
                vision_config=vision, prompt_encoder_config={**sizes, "hidden_size": 16}, mask_decoder_config=decoder
            )
        )
        own = model
        if encoder:
            own = SamVisionModel(model.config.vision_config)
            own.vision_encoder.load_state_dict(model.vision_encoder.state_dict())
        _save(own, folder)
    pad = {"height": SIZE, "width": SIZE}
    SamImageProcessorPil(size={"longest_edge": SIZE}, pad_size=pad).save_pretrained(folder)
    return folder


def save_masked(folder: Path, seed: int = 0, each: int = 5, classes: int = 3) -> Path:
    """Images of several sizes with masks: rectangles of the classes 1 and up, brighter, on a ground of 0."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(each):
        height, width = 20 + number, 28 - number
        mask = np.zeros((height, width), np.uint8)
        for own in range(1, classes):
            row, column = rng.integers(0, height - 8), rng.integers(0, width - 8)
            mask[row : row + 8, column : column + 6] = own
        pixels = rng.integers(0, 60, (height, width, 3)) + 60 * mask[..., None]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder

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

"""The small image classifiers of the demo, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from evomerge.demo.image_tasks import LABELS, SIZE, TaskImages
from evomerge.demo.train import learning_rate_at
from evomerge.models.progress_bars import no_progress_bar

Kind = Literal["vit", "resnet"]

BATCH = 64
MEAN, STD = 0.5, 0.5
"""Of pixels from 0 to 1, in the image processor too."""

_LABELS = {"id2label": dict(enumerate(LABELS)), "label2id": {name: number for number, name in enumerate(LABELS)}}


def new_classifier(kind: Kind, seed: int) -> Any:
    """An untrained ``ForImageClassification`` of transformers with a head of `LABELS`."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "vit":
            return ViTForImageClassification(
                ViTConfig(
                    image_size=SIZE,
                    patch_size=4,
                    hidden_size=48,
                    num_hidden_layers=3,
                    num_attention_heads=4,
                    intermediate_size=96,
                    hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0,
                    **_LABELS,
                )
            )
        return ResNetForImageClassification(
            ResNetConfig(
                embedding_size=16,
                hidden_sizes=[16, 32, 48],
                depths=[1, 1, 1],
                layer_type="basic",
                downsample_in_first_stage=False,
                **_LABELS,
            )
        )


def pixels_of(images: Any) -> torch.Tensor:
    """What the image processor makes of images of shape (images, SIZE, SIZE, 3)."""
    scaled = torch.from_numpy(np.ascontiguousarray(images)).float() / 255
    return ((scaled - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def train_classifier(
    model: Any,
    tasks: Mapping[str, TaskImages],
    steps: int,
    rate: float,
    rng: np.random.Generator,
    each_step: Callable[[], None],
) -> None:
    """Train a model in place, a batch of one task at a time.

    Args:
        model: of `new_classifier`.
        tasks: to learn, in turn.
        steps: of AdamW, without weight decay.
        rate: the largest learning rate.
        rng: of the batches.
        each_step: called after every step.
    """
    model.train()
    ready = [(pixels_of(own.images), torch.from_numpy(own.labels)) for own in tasks.values()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * learning_rate_at(step, steps)
        pixels, labels = ready[step % len(ready)]
        chosen = torch.from_numpy(rng.integers(0, len(labels), BATCH))
        loss = functional.cross_entropy(model(pixel_values=pixels[chosen]).logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        each_step()
    model.eval()


def save_classifier(model: Any, folder: Path) -> None:
    """Write a model and its image processor."""
    from transformers import ViTImageProcessorPil

    processor = ViTImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, image_mean=[MEAN] * 3, image_std=[STD] * 3, do_resize=True
    )
    with no_progress_bar():
        model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_segmenter(model: Any, folder: Path, side: int) -> None:
    """Write a SegFormer and its image processor, which reads images of this side as they are."""
    from transformers import SegformerImageProcessorPil

    processor = SegformerImageProcessorPil(
        size={"height": side, "width": side}, image_mean=[MEAN] * 3, image_std=[STD] * 3
    )
    with no_progress_bar():
        model.save_pretrained(folder)
    processor.save_pretrained(folder)

"""Makes the demo's pool of segmenters: small SegFormers that find digits on canvases in one condition each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.demo.building import build_once, versions
from evomerge.demo.image_tasks import PARTS, SIZE, TASKS, draw_tasks, write_masked

CONDITIONS = ("noisy", "faint", "blurred", "covered")
"""Of the sources: what becomes of a canvas that leaves every digit where it is."""

SIDE = 2 * SIZE
"""Pixels of a canvas's side."""

CLASSES = ("ground", "digit")
_INK = 0.4
"""Pixels of a digit are those with more of it, from 0 to 1."""

Masks = NDArray[np.uint8]
"""Numbers in `CLASSES`, of shape (canvases, SIDE, SIDE)."""


@dataclass(frozen=True)
class Sizes:
    """How much is drawn and learnt.

    Attributes:
        train, search, held_out: canvases of each condition.
        start: steps of the base, on canvases as they are.
        steps: of each source, on its condition.
    """

    train: int = 1500
    search: int = 80
    held_out: int = 150
    start: int = 500
    steps: int = 150


QUICK = Sizes(20, 6, 6, 4, 3)
_RATES = 4e-3, 1.5e-3  # the largest of the base, and of the sources
_BATCH = 32


def make_segmentation(
    folder: Path,
    seed: int = 0,
    *,
    threads: int | None = None,
    quick: bool = False,
    each_step: Callable[[str], None] = lambda _: None,
) -> Path:
    """Make canvases and models in `folder`, unless they are there.

    On a canvas are two of scikit-learn's digits; its mask says which pixels are of one. Writes
    ``data/CONDITION/search`` and ``data/CONDITION/held_out``, each with ``images`` and ``masks``, and a SegFormer for
    ``base`` and each of `CONDITIONS`. A digit is for training, or for the search, or held out.

    Args:
        folder: where they go.
        seed: of canvases, batches and parameters.
        threads: torch threads to train with; torch's number for ``None``.
        quick: a few steps and canvases: models of the right shape that can do nothing.
        each_step: told the model's name after every step.

    Returns:
        The absolute path of `folder`.

    Raises:
        OutputError: `folder` holds something else.
    """
    from evomerge.demo.train import seeded, streams

    sizes = QUICK if quick else Sizes()
    wanted: dict[str, Any] = {"segmentation": 2, "seed": seed, **asdict(sizes), "rates": list(_RATES)}
    wanted |= {"versions": versions("torch", "transformers", "scikit-learn")}

    def write(building: Path) -> None:
        canvases, parameters, order = streams(seed)
        drawn = draw_canvases(canvases, sizes)
        for name in CONDITIONS:
            for part in PARTS[1:]:
                write_masked(building / "data" / name / part, *drawn[name][part])
        with seeded(parameters, threads):
            _train_all(building, drawn, sizes, order, each_step)

    return build_once(Path(folder).absolute(), wanted, "pool of segmenters", write)


def draw_canvases(rng: np.random.Generator, sizes: Sizes) -> dict[str, dict[str, tuple[NDArray[np.uint8], Masks]]]:
    """By condition, ``plain`` among them, and part its canvases and masks.

    Canvases are of shape (canvases, SIDE, SIDE, 3); those of a part are of the same digits in all conditions.
    """
    digits = draw_tasks(rng)["plain"]
    found: dict[str, dict[str, tuple[NDArray[np.uint8], Masks]]] = {name: {} for name in ("plain", *CONDITIONS)}
    for part in PARTS:
        grey, masks = _placed(digits[part].images[..., 0] / 255, getattr(sizes, part), rng)
        for name, own in found.items():
            changed = np.clip(np.stack([TASKS[name](canvas, rng) for canvas in grey]), 0, 1)
            own[part] = np.repeat(np.round(255 * changed).astype(np.uint8)[..., None], 3, axis=-1), masks
    return found


def _placed(digits: NDArray[np.float64], count: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], Masks]:
    """Canvases with a digit in each half, and what is where."""
    grey, masks = np.zeros((count, SIDE, SIDE)), np.zeros((count, SIDE, SIDE), np.uint8)
    for canvas, mask in zip(grey, masks, strict=True):
        for left in (0, SIZE):
            chosen, top = int(rng.integers(len(digits))), int(rng.integers(SIDE - SIZE + 1))
            canvas[top : top + SIZE, left : left + SIZE] = digits[chosen]
            mask[top : top + SIZE, left : left + SIZE][digits[chosen] > _INK] = 1
    return grey, masks


def _train_all(
    folder: Path,
    drawn: Mapping[str, Mapping[str, tuple[NDArray[np.uint8], Masks]]],
    sizes: Sizes,
    rng: np.random.Generator,
    each_step: Callable[[str], None],
) -> None:
    from evomerge.demo.image_train import save_segmenter

    model = _new_model()
    _train(model, drawn["plain"]["train"], sizes.start, _RATES[0], rng, lambda: each_step("base"))
    save_segmenter(model, folder / "base", SIDE)
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for name in CONDITIONS:
        model.load_state_dict(start)
        _train(model, drawn[name]["train"], sizes.steps, _RATES[1], rng, _told(each_step, name))
        save_segmenter(model, folder / name, SIDE)


def _new_model() -> Any:
    """A SegFormer of two stages for `CLASSES`."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_encoder_blocks=2,
            hidden_sizes=[24, 48],
            depths=[2, 2],
            num_attention_heads=[2, 4],
            sr_ratios=[2, 1],
            patch_sizes=[5, 3],
            strides=[2, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=48,
            classifier_dropout_prob=0.0,
            drop_path_rate=0.0,
            id2label=dict(enumerate(CLASSES)),
            label2id={name: number for number, name in enumerate(CLASSES)},
        )
    )


def _train(
    model: Any,
    data: tuple[NDArray[np.uint8], Masks],
    steps: int,
    rate: float,
    rng: np.random.Generator,
    each_step: Callable[[], None],
) -> None:
    """Train a model in place, by AdamW without weight decay."""
    import torch

    from evomerge.demo.image_train import pixels_of
    from evomerge.demo.train import learning_rate_at

    model.train()
    pixels, masks = pixels_of(data[0]), torch.from_numpy(data[1].astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * learning_rate_at(step, steps)
        chosen = torch.from_numpy(rng.integers(0, len(masks), _BATCH))
        loss = model(pixel_values=pixels[chosen], labels=masks[chosen]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        each_step()
    model.eval()


def _told(each_step: Callable[[str], None], name: str) -> Callable[[], None]:
    return lambda: each_step(name)

"""Makes a pool of eight small CLIP models of one start, whose image towers are tuned on digits in eight conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.demo.building import build_once, versions
from evomerge.demo.image_tasks import LABELS, SIZE, TaskImages, draw_tasks, write_images

BASE, TEMPLATE = "base", "a photo of the number {}"
TASK_OF: Mapping[str, str] = dict(
    zip(
        ("sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"),
        ("covered", "shifted", "tilted", "faint", "noisy", "small", "plain", "blurred"),
        strict=True,
    )
)
"""The eight tasks of the literature by their names, and the condition of the digits that stands in for each."""


@dataclass(frozen=True)
class ClipSizes:
    """How much is drawn and trained.

    Attributes:
        search, test: images of every task.
        start_steps, steps: of the start, and of every image tower.
        rate: of the towers.
        width, layers: of both towers.
    """

    search: int = 200
    test: int = 400
    start_steps: int = 400
    steps: int = 80
    rate: float = 4e-4
    width: int = 32
    layers: int = 3


LARGE = ClipSizes(width=48, layers=5)
"""Towers that are wider and deeper, as ViT-L/14 is beside ViT-B/32."""

QUICK = ClipSizes(12, 20, 4, 3, 4e-4, 16, 2)
QUICK_LARGE = ClipSizes(12, 20, 4, 3, 4e-4, 16, 3)
"""Models of the right shapes that can do next to nothing."""
_START_RATE, _BATCH = 2e-3, 64


def make_clips(
    folder: Path,
    seed: int = 0,
    *,
    quick: bool = False,
    sizes: ClipSizes | None = None,
    each_step: Callable[[str], None] = lambda name: None,
) -> Path:
    """Make the pool in `folder`, unless it already holds this very pool.

    Writes a whole `CLIPModel` per folder (``base`` and the names of `TASK_OF`), with tokenizer and image processor,
    ``images/TASK/search`` and ``images/TASK/test`` with a folder for each class, and ``manifest.json``. Text towers and
    projections are the start's in all of them.

    Args:
        folder: where the pool goes; an earlier one there is replaced, anything else is left alone.
        seed: of images, batches and parameters.
        quick: `QUICK`, instead of the whole training.
        sizes: others than `quick` says.
        each_step: called after every step with the name of the model that is trained.

    Returns:
        The absolute path of `folder`.

    Raises:
        OutputError: `folder` holds something else.
    """
    chosen = sizes or (QUICK if quick else ClipSizes())
    wanted: dict[str, Any] = {"clips": 1, "seed": seed, **asdict(chosen)}
    wanted |= {"versions": versions("torch", "transformers", "scikit-learn")}

    def write(building: Path) -> None:
        pictures, batches, parameters = np.random.SeedSequence(seed).spawn(3)
        drawn = draw_tasks(np.random.default_rng(pictures))
        tasks = {name: drawn[condition] for name, condition in TASK_OF.items()}
        for name, parts in tasks.items():
            write_images(building / "images" / name / "search", parts["search"].first(chosen.search))
            write_images(building / "images" / name / "test", parts["held_out"].first(chosen.test))
        train = {name: parts["train"] for name, parts in tasks.items()}
        _train_all(building, train, chosen, batches, int(parameters.generate_state(1)[0]), each_step)

    return build_once(Path(folder).absolute(), wanted, "pool of CLIP models", write)


def _train_all(
    folder: Path,
    tasks: Mapping[str, TaskImages],
    sizes: ClipSizes,
    batches: np.random.SeedSequence,
    seed: int,
    each_step: Callable[[str], None],
) -> None:
    model, tokenizer = _new_model(sizes, seed)
    prompts = tokenizer([TEMPLATE.format(name) for name in LABELS], padding=True, return_tensors="pt")
    streams = batches.spawn(1 + len(tasks))
    _train(model, tasks, prompts, sizes.start_steps, _START_RATE, streams[0], lambda: each_step(BASE))
    _save(model, tokenizer, folder / BASE)
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("vision_model."))
    for (name, own), stream in zip(tasks.items(), streams[1:], strict=True):
        model.load_state_dict(start)
        _train(model, {name: own}, prompts, sizes.steps, sizes.rate, stream, _told(each_step, name))
        _save(model, tokenizer, folder / name)


def _new_model(sizes: ClipSizes, seed: int) -> tuple[Any, Any]:
    """A fresh `CLIPModel`, and a tokenizer of the prompts' words; torch's global generator is kept."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "<unk>", *dict.fromkeys(TEMPLATE.replace("{}", "").split()), *LABELS]
    ids = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=16, **names)
    tower = {"hidden_size": sizes.width, "intermediate_size": 2 * sizes.width, "num_attention_heads": 4}
    text = {**tower, "num_hidden_layers": 1, "vocab_size": len(words), "max_position_embeddings": 16}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**tower, "num_hidden_layers": sizes.layers, "image_size": SIZE, "patch_size": 4}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=sizes.width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config), tokenizer


def _train(
    model: Any,
    tasks: Mapping[str, TaskImages],
    prompts: Any,
    steps: int,
    rate: float,
    stream: np.random.SeedSequence,
    each_step: Callable[[], None],
) -> None:
    """Train in place: of the classes' prompts an image's own is to be the nearest, a batch of one task at a time."""
    import torch
    from torch.nn import functional

    from evomerge.demo.image_train import pixels_of
    from evomerge.demo.train import learning_rate_at

    model.train()
    rng = np.random.default_rng(stream)
    ready = [(pixels_of(own.images), torch.from_numpy(own.labels)) for own in tasks.values()]
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=rate, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * learning_rate_at(step, steps)
        pixels, labels = ready[step % len(ready)]
        chosen = torch.from_numpy(rng.integers(0, len(labels), _BATCH))
        logits = model(**prompts, pixel_values=pixels[chosen]).logits_per_image
        loss = functional.cross_entropy(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        each_step()
    model.eval()


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    from transformers import ViTImageProcessorPil

    from evomerge.demo.image_train import MEAN, STD
    from evomerge.models.progress_bars import no_progress_bar

    processor = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, image_mean=[MEAN] * 3, image_std=[STD] * 3)
    with no_progress_bar():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)


def _told(each_step: Callable[[str], None], name: str) -> Callable[[], None]:
    return lambda: each_step(name)

"""Makes the demo's pools of image classifiers: ViTs and ResNets, each fine-tuned on one task from one start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from evomerge.demo.building import build_once
from evomerge.demo.image_tasks import TASKS, draw_tasks, write_images
from evomerge.errors import ConfigError

FOLDER = "images"
"""Of the pictures, a folder for each task in it."""

SEARCH_ITEMS = 200
"""Pictures of each task that a search scores; all others that are not for training are held out."""

QUICK_STEPS, QUICK_ITEMS = 8, 24


@dataclass(frozen=True)
class Training:
    """How a kind of model is trained.

    Attributes:
        kind: of the model, and the name of its folder.
        tasks: each of which a source is fine-tuned on.
        learnt: tasks that the base is trained on, in turn.
        start: its steps.
        steps: of each source, on its own.
        rates: the largest learning rate of either.
    """

    kind: Literal["vit", "resnet"]
    tasks: tuple[str, ...]
    learnt: tuple[str, ...]
    start: int
    steps: int
    rates: tuple[float, float]


TRAININGS = (
    Training("vit", tuple(TASKS), ("plain",), 300, 150, (2e-3, 1e-3)),
    Training("resnet", ("plain", "noisy", "blurred", "tilted"), ("plain",), 150, 150, (2e-3, 4e-3)),
)


def make_image_pool(
    folder: Path, seed: int = 0, *, threads: int | None = None, quick: bool = False, each_step: Callable[[str], None]
) -> Path:
    """Make pictures and models in `folder`, unless they are there.

    Writes ``images/TASK/search`` and ``images/TASK/held_out`` with a folder for each class; ``vit`` and ``resnet`` with
    a ``base`` and a source for each task.

    Args:
        folder: where they go.
        seed: of pictures, batches and parameters.
        threads: torch threads to train with; torch's number for ``None``.
        quick: a few steps and pictures: models of the right shape that can do nothing.
        each_step: told the model's name after every step; see `count_steps`.

    Returns:
        The absolute path of `folder`.

    Raises:
        ConfigError: the seed is below 0.
        OutputError: `folder` holds something else.
    """
    if seed < 0:
        raise ConfigError(f"the seed is {seed}", "0 or more")
    trainings = [training_of(training, quick) for training in TRAININGS]
    wanted = {"seed": seed, "quick": quick, "trainings": [[*map(_plain, vars(own).values())] for own in trainings]}
    return build_once(
        Path(folder).absolute(),
        wanted,
        "image classifiers",
        lambda building: _build(building, seed, trainings, threads, quick, each_step),
    )


def count_steps(quick: bool = False) -> int:
    """How often `make_image_pool` calls ``each_step``."""
    found = [training_of(own, quick) for own in TRAININGS]
    return sum(own.start + own.steps * len(own.tasks) for own in found)


def training_of(training: Training, quick: bool) -> Training:
    """A training, or a few steps of it."""
    steps = (min(QUICK_STEPS, training.start), min(QUICK_STEPS, training.steps)) if quick else None
    return training if steps is None else replace(training, start=steps[0], steps=steps[1])


def _build(
    folder: Path,
    seed: int,
    trainings: list[Training],
    threads: int | None,
    quick: bool,
    each_step: Callable[[str], None],
) -> None:
    from evomerge.demo.image_train import new_classifier, save_classifier, train_classifier
    from evomerge.demo.train import torch_threads

    pictures, batches, parameters = np.random.SeedSequence(seed).spawn(3)
    tasks = draw_tasks(np.random.default_rng(pictures))
    for task, parts in tasks.items():
        for part, most in (("search", SEARCH_ITEMS), ("held_out", 10**9)):
            write_images(folder / FOLDER / task / part, parts[part].first(QUICK_ITEMS if quick else most))
    with torch_threads(threads):
        for training, stream in zip(trainings, batches.spawn(len(trainings)), strict=True):
            streams = stream.spawn(1 + len(training.tasks))
            model = new_classifier(training.kind, int(parameters.generate_state(1)[0]))
            learnt = {task: tasks[task]["train"] for task in training.learnt}
            for name, own in zip(("base", *training.tasks), streams, strict=True):
                rng = np.random.default_rng(own)
                if name == "base":
                    train_classifier(model, learnt, training.start, training.rates[0], rng, lambda: each_step("base"))
                    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
                else:
                    model.load_state_dict(start)
                    alone = {name: tasks[name]["train"]}
                    train_classifier(model, alone, training.steps, training.rates[1], rng, _step(each_step, name))
                save_classifier(model, folder / training.kind / name)


def _step(each_step: Callable[[str], None], name: str) -> Callable[[], None]:
    return lambda: each_step(name)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value

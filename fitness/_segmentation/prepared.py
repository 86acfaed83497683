"""Everything about images and masks that is made once; and how a model is scored on them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from evomerge.errors import FitnessError
from evomerge.models.loaded import LoadedModel
from fitness._images.pixels import Pixels, digest_of
from fitness._images.ready import How, Processed, evaluating, given, process, require_module
from fitness._images.sources import ImageItem
from fitness._segmentation.labels import NOT_COUNTED, Classes
from fitness._segmentation.models import Frame, frame_of, kind_of, load_sam, masks_for
from fitness._segmentation.scored import ImageScore, score_classes, score_things
from fitness._segmentation.sources import MaskedSource
from fitness._segmentation.terms import SegmentationTerm


@dataclass(frozen=True)
class ReadyTask:
    """One task's images.

    Attributes:
        term: the task.
        pixels: processed.
        source: where they are from, and their masks.
        frames: where each lies on its pixels.
    """

    term: SegmentationTerm
    pixels: Pixels
    source: MaskedSource
    frames: Sequence[Frame]


@dataclass(frozen=True)
class Prepared:
    """What `prepare` makes.

    Attributes:
        tasks: by name.
        sam: what has the mask decoder of image encoders; ``None`` where they have one.
        how: what holds for all.
        images: as the model reads them.
        text: what a fingerprint is of.
    """

    tasks: Mapping[str, ReadyTask]
    sam: Any = field(repr=False)
    how: How
    images: Processed
    text: str

    @torch.no_grad()
    def scores(
        self, model: LoadedModel, name: str, places: Sequence[int] | None, classes: Classes | None
    ) -> tuple[list[ImageScore], float]:
        """The score of each of a task's images, and seconds inside model calls.

        Args:
            model: with the task's head in place.
            name: of the task.
            places: of the images; ``None`` for all.
            classes: of the head; ``None`` where things are asked for.

        Raises:
            FitnessError: outputs that are not finite, naming the image.
        """
        task = self.tasks[name]
        chosen = list(range(len(task.pixels))) if places is None else list(places)
        with evaluating(model.module):
            return self._things(model, task, chosen) if classes is None else self._classes(model, task, chosen, classes)

    def _classes(
        self, model: LoadedModel, task: ReadyTask, chosen: Sequence[int], classes: Classes
    ) -> tuple[list[ImageScore], float]:
        found, seconds = list[ImageScore](), 0.0
        for first in range(0, len(chosen), self.how.batch_size):
            own = chosen[first : first + self.how.batch_size]
            start = time.perf_counter()
            logits = model.module(pixel_values=given(model, task.pixels[own])).logits
            _require_finite(logits, task, own)
            seconds += time.perf_counter() - start
            for place, each in zip(own, logits, strict=True):
                found.append(score_classes(classes.gold(task.source.items[place].mask), each, classes.background))
        return found, seconds

    def _things(self, model: LoadedModel, task: ReadyTask, chosen: Sequence[int]) -> tuple[list[ImageScore], float]:
        found, seconds = list[ImageScore](), 0.0
        if self.sam is not None:
            self.sam.to(model.device)
        for place in chosen:
            item, start = task.source.items[place], time.perf_counter()
            prompts = item.prompts
            assert prompts is not None  # of every task with prompts
            pixels = given(model, task.pixels[place])
            logits = masks_for(model.module, self.sam, pixels, prompts, task.frames[place], item.mask.shape)
            _require_finite(logits[None], task, [place])
            seconds += time.perf_counter() - start
            counted = ~np.isin(item.mask, task.term.ignored)
            found.append(score_things([item.mask == own for own in prompts.classes], logits, counted))
        return found, seconds


def prepare(
    model: LoadedModel,
    terms: Sequence[SegmentationTerm],
    sources: Mapping[str, MaskedSource],
    others: Sequence[ImageItem],
    how: How,
) -> Prepared:
    """Decode and process the images for models like this one.

    Args:
        model: one of the pool's, or merged of them.
        terms: the tasks.
        sources: their images.
        others: that batch-norm statistics are of, instead of the tasks'.
        how: what holds for all tasks.

    Raises:
        FitnessError: as for `SegmentationFitness.prepare`.
    """
    require_module(model)
    sam = load_sam(how.other) if kind_of(model.module.config) == "encoder" else None
    items = {term.name: sources[term.name].items for term in terms}
    images = process(model, {name: [item.image for item in own] for name, own in items.items()}, others, how)
    tasks = dict[str, ReadyTask]()
    for term in terms:
        pixels = images.pixels[term.name]
        frames = [frame_of(images.processor, item.mask.shape, pixels.shape[2:]) for item in items[term.name]]
        tasks[term.name] = ReadyTask(term, pixels, sources[term.name], frames)
    return Prepared(tasks, sam, how, images, _text(tasks, sam, images.text(how, model.dtype)))


def told(score: ImageScore, names: Sequence[str]) -> str:
    """What reports show of an image: of each class, or thing, its Dice."""
    both = score.wanted + score.told
    seen = np.flatnonzero(both).tolist()
    return ", ".join(f"{names[own]} {2 * score.overlap[own] / both[own]:.2f}" for own in seen)


def _require_finite(logits: torch.Tensor, task: ReadyTask, places: Sequence[int]) -> None:
    wild = (~torch.isfinite(logits).flatten(1).all(dim=1)).nonzero()
    if len(wild):
        where = task.source.items[places[int(wild[0])]].image.where
        raise FitnessError(f"the model's outputs for {where} are not finite", "finite weights")


def _text(tasks: Mapping[str, ReadyTask], sam: Any, common: Mapping[str, Any]) -> str:
    rest = hashlib.sha256()
    for name, tensor in sorted(sam.state_dict().items()) if sam is not None else ():
        if not name.startswith("vision_encoder."):
            rest.update(name.encode() + tensor.cpu().numpy().tobytes())
    found = {
        **common,
        "sam": rest.hexdigest() if sam is not None else "",
        "not counted": NOT_COUNTED,
        "tasks": [
            [
                name,
                digest_of([task.pixels]),
                _digest(task.source),
                [task.term.head, list(task.term.ignored), task.term.ground, task.term.prompt],
                [[metric.name, metric.weight] for metric in task.term.metrics],
                [task.term.weight, task.term.objective],
            ]
            for name, task in tasks.items()
        ],
    }
    return json.dumps(found, sort_keys=True)


def _digest(source: MaskedSource) -> str:
    """A hash of masks and prompts."""
    digest = hashlib.sha256()
    for item in source.items:
        digest.update(str(item.mask.shape).encode() + item.mask.tobytes())
        if item.prompts is not None:
            digest.update(str(item.prompts.classes).encode() + item.prompts.places.tobytes())
            digest.update(b"" if item.prompts.given is None else item.prompts.given.tobytes())
    return digest.hexdigest()

"""Everything about images and masks that is made once; and how a model is scored on them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from evomerge.errors import FitnessError
from evomerge.models.loaded import LoadedModel
from fitness._images.batch_norm import batch_norms_of, recomputed
from fitness._images.pixels import Pixels, digest_of, load_processor, processed, settings_of
from fitness._images.sources import ImageItem
from fitness._images.statistics import statistics_of
from fitness._images.terms import BatchNormTerm
from fitness._segmentation.labels import NOT_COUNTED, Classes
from fitness._segmentation.models import Frame, frame_of, kind_of, load_sam, masks_for
from fitness._segmentation.scored import ImageScore, score_classes, score_things
from fitness._segmentation.sources import MaskedSource
from fitness._segmentation.terms import SegmentationTerm


@dataclass(frozen=True)
class How:
    """What holds for all tasks.

    Attributes:
        batch_size: images of a forward; those with prompts are read one by one.
        budget: bytes of processed images that are kept in memory.
        cache: folder for more; empty for a temporary one.
        processor: folder of the image processor; empty for the model's.
        sam: model with the mask decoder of image encoders; empty where they have one.
        batch_norm: ``None`` where statistics stay as they are merged.
    """

    batch_size: int
    budget: int
    cache: str
    processor: str
    sam: str
    batch_norm: BatchNormTerm | None


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
        statistics: pixels that batch-norm statistics are of, in batches; empty where none are to be computed.
        text: what a fingerprint is of.
    """

    tasks: Mapping[str, ReadyTask]
    sam: Any = field(repr=False)
    how: How
    statistics: tuple[Pixels, ...]
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
        training = model.module.training
        model.module.eval()
        try:
            return self._things(model, task, chosen) if classes is None else self._classes(model, task, chosen, classes)
        finally:
            model.module.train(training)

    def batch_norms(self, model: LoadedModel) -> dict[str, torch.Tensor]:
        """Statistics of the model's batch norms, by buffer; none where none are to be computed."""
        if not self.statistics:
            return {}
        return recomputed(model.module, [_given(model, own) for own in self.statistics])

    def _classes(
        self, model: LoadedModel, task: ReadyTask, chosen: Sequence[int], classes: Classes
    ) -> tuple[list[ImageScore], float]:
        found, seconds = list[ImageScore](), 0.0
        for first in range(0, len(chosen), self.how.batch_size):
            own = chosen[first : first + self.how.batch_size]
            start = time.perf_counter()
            logits = model.module(pixel_values=_given(model, task.pixels[own])).logits
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
            pixels = _given(model, task.pixels[place])
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
    if model.module is None:
        raise FitnessError("the model is held by an engine", "evaluator.engine=transformers")
    processor = load_processor(how.processor or model.name_or_path)
    sam = load_sam(how.sam) if kind_of(model.module.config) == "encoder" else None
    budget, tasks = how.budget, dict[str, ReadyTask]()
    for term in terms:
        source = sources[term.name]
        pixels = processed([item.image for item in source.items], processor, budget, how.cache)
        budget -= pixels.nbytes if not isinstance(pixels, np.memmap) else 0
        frames = [frame_of(processor, item.mask.shape, pixels.shape[2:]) for item in source.items]
        tasks[term.name] = ReadyTask(term, pixels, source, frames)
    statistics: tuple[Pixels, ...] = ()
    if how.batch_norm is not None and batch_norms_of(model.module):
        statistics = statistics_of(how.batch_norm, {n: own.pixels for n, own in tasks.items()}, others, processor)
    return Prepared(
        tasks, sam, how, statistics, _text(tasks, sam, how, statistics, model.dtype, settings_of(processor))
    )


def text_of_classes(classes: Classes | None) -> list[Any]:
    """What a fingerprint has of how masks are read."""
    return [] if classes is None else [classes.table.tolist(), list(classes.names), classes.background]


def told(score: ImageScore, names: Sequence[str]) -> str:
    """What reports show of an image: of each class, or thing, its Dice."""
    both = score.wanted + score.told
    seen = np.flatnonzero(both).tolist()
    return ", ".join(f"{names[own]} {2 * score.overlap[own] / both[own]:.2f}" for own in seen)


def _given(model: LoadedModel, pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(np.array(pixels)).to(model.device, model.dtype)


def _require_finite(logits: torch.Tensor, task: ReadyTask, places: Sequence[int]) -> None:
    wild = (~torch.isfinite(logits).flatten(1).all(dim=1)).nonzero()
    if len(wild):
        where = task.source.items[places[int(wild[0])]].image.where
        raise FitnessError(f"the model's outputs for {where} are not finite", "finite weights")


def _text(
    tasks: Mapping[str, ReadyTask],
    sam: Any,
    how: How,
    statistics: Sequence[Pixels],
    dtype: torch.dtype,
    settings: str,
) -> str:
    rest = hashlib.sha256()
    for name, tensor in sorted(sam.state_dict().items()) if sam is not None else ():
        if not name.startswith("vision_encoder."):
            rest.update(name.encode() + tensor.cpu().numpy().tobytes())
    found = {
        "versions": {name: importlib.metadata.version(name) for name in ("transformers", "torch", "pillow")},
        "processor": settings,
        "batch_size": how.batch_size,
        "dtype": str(dtype),
        "sam": rest.hexdigest() if sam is not None else "",
        "batch_norm": digest_of(statistics) if statistics else "",
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

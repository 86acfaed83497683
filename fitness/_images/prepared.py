"""Everything about images that is made once: pixels, labels, heads; and how a model is scored on them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.candidate import Part
from evomerge.errors import FitnessError, nearest
from evomerge.models.loaded import LoadedModel
from fitness._images.batch_norm import batch_norms_of, recomputed
from fitness._images.labels import class_numbers
from fitness._images.metrics import require_finite, values_of
from fitness._images.pixels import Pixels, digest_of, load_processor, processed, settings_of
from fitness._images.sources import ImageItem, ImageSource, evenly
from fitness._images.terms import BatchNormTerm, ImageTerm
from fitness._images.zero_shot import ZeroShot, build, has_head


@dataclass(frozen=True)
class How:
    """What holds for all tasks.

    Attributes:
        batch_size: images of a forward.
        budget: bytes of processed images that are kept in memory.
        cache: folder for more; empty for a temporary one.
        processor: folder of the image processor; empty for the model's.
        clip: model with the text tower of zero-shot heads; empty for the one that gives the configuration.
        batch_norm: ``None`` where statistics stay as they are merged.
    """

    batch_size: int
    budget: int
    cache: str
    processor: str
    clip: str
    batch_norm: BatchNormTerm | None


@dataclass(frozen=True)
class ReadyTask:
    """One task's images.

    Attributes:
        term: the task.
        pixels: processed.
        labels: places of the right classes among the logits that count.
        where: of each image, for messages.
        columns: of the head's logits those that count, in order; ``None`` for all.
    """

    term: ImageTerm
    pixels: Pixels
    labels: NDArray[np.int64]
    where: tuple[str, ...]
    columns: tuple[int, ...] | None


@dataclass(frozen=True)
class Prepared:
    """What `prepare` makes.

    Attributes:
        tasks: by name.
        heads: of zero-shot classification; ``None`` where the model has a head.
        how: what holds for all.
        statistics: pixels that batch-norm statistics are of, in batches; empty where none are to be computed.
        dtype: of the model.
        text: what a fingerprint is of.
    """

    tasks: Mapping[str, ReadyTask]
    heads: ZeroShot | None
    how: How
    statistics: tuple[Pixels, ...]
    dtype: torch.dtype
    text: str

    def score(self, model: LoadedModel, part: Part | None) -> tuple[dict[str, NDArray[np.float64]], float]:
        """Values by ``task/metric``, and seconds inside model calls.

        Raises:
            FitnessError: as for `ImagesFitness.run`.
        """
        places, seconds, found = self._places(part), 0.0, {}
        training = model.module.training
        model.module.eval()
        try:
            for name, task in self.tasks.items():
                start = time.perf_counter()
                logits = self._logits(model, task, places[name])
                seconds += time.perf_counter() - start
                require_finite(logits, [task.where[i] for i in places[name]])
                own = values_of(logits, task.labels[places[name]], [metric.name for metric in task.term.metrics])
                for metric, values in own.items():
                    found[f"{name}/{metric}"] = np.full(len(task.labels), np.nan)
                    found[f"{name}/{metric}"][places[name]] = values
        finally:
            model.module.train(training)
        return found, seconds

    def batch_norms(self, model: LoadedModel) -> dict[str, torch.Tensor]:
        """Statistics of the model's batch norms, by buffer; none where none are to be computed."""
        if not self.statistics:
            return {}
        return recomputed(model.module, [self._given(model, own) for own in self.statistics])

    @torch.no_grad()
    def _logits(self, model: LoadedModel, task: ReadyTask, places: Sequence[int]) -> NDArray[np.float32]:
        found = []
        for start in range(0, len(places), self.how.batch_size):
            batch = self._given(model, task.pixels[places[start : start + self.how.batch_size]])
            if self.heads is not None:
                logits = self.heads.logits(model.module, batch, task.term.name)
            else:
                logits = model.module(pixel_values=batch).logits
            if task.columns is not None:
                logits = logits[:, list(task.columns)]
            found.append(logits.float().cpu())
        array: NDArray[np.float32] = torch.cat(found).numpy()
        return array

    @staticmethod
    def _given(model: LoadedModel, pixels: Pixels) -> torch.Tensor:
        return torch.from_numpy(np.array(pixels)).to(model.device, model.dtype)

    def _places(self, part: Part | None) -> dict[str, list[int]]:
        counts = {name: len(task.labels) for name, task in self.tasks.items()}
        if part is None:
            return {name: list(range(count)) for name, count in counts.items()}
        for name in part:
            if name not in counts:
                raise FitnessError(f"the part has items of {name!r}", nearest(name, counts))
        found = {name: sorted(set(part.get(name, ()))) for name in counts}
        for name, own in found.items():
            if not own or own[0] < 0 or own[-1] >= counts[name]:
                given = f"places {own[:1]} to {own[-1:]} of {name}" if own else f"no item of {name}"
                raise FitnessError(f"the part has {given}", f"places from 0 to {counts[name] - 1}, one at least")
        return found


def prepare(
    model: LoadedModel,
    terms: Sequence[ImageTerm],
    sources: Mapping[str, ImageSource],
    others: Sequence[ImageItem],
    how: How,
) -> Prepared:
    """Decode and process the images, and build the heads, for models like this one.

    Args:
        model: one of the pool's, or merged of them.
        terms: the tasks.
        sources: their images.
        others: that batch-norm statistics are of, instead of the tasks'.
        how: what holds for all tasks.

    Raises:
        FitnessError: as for `ImagesFitness.prepare`.
    """
    if model.module is None:
        raise FitnessError("the model is held by an engine", "evaluator.engine=transformers")
    config = model.module.config
    processor = load_processor(how.processor or model.name_or_path)
    heads = None
    if not has_head(config):
        heads = build(terms, {name: own.classes for name, own in sources.items()}, how.clip or model.name_or_path)
    budget, tasks = how.budget, dict[str, ReadyTask]()
    for term in terms:
        source = sources[term.name]
        pixels = processed(source.items, processor, budget, how.cache)
        budget -= pixels.nbytes if not isinstance(pixels, np.memmap) else 0
        numbers, columns = numbers_of(term, source, config, heads is not None)
        labels = np.array([numbers[item.label] for item in source.items], dtype=np.int64)
        tasks[term.name] = ReadyTask(term, pixels, labels, tuple(item.where for item in source.items), columns)
    statistics: tuple[Pixels, ...] = ()
    if how.batch_norm is not None and batch_norms_of(model.module):
        statistics = _statistics(how.batch_norm, tasks, others, processor)
    text = _text(tasks, heads, how, statistics, model.dtype, settings_of(processor))
    return Prepared(tasks, heads, how, statistics, model.dtype, text)


def numbers_of(
    term: ImageTerm, source: ImageSource, config: Any, zero_shot: bool
) -> tuple[dict[str, int], tuple[int, ...] | None]:
    """The place of each of a task's classes among the logits that count, and which of the head's these are.

    Raises:
        FitnessError: as for `class_numbers`.
    """
    if zero_shot:
        return {name: number for number, name in enumerate(source.classes)}, None
    numbers = class_numbers(term, source.classes, config.id2label)
    if term.among == "all":
        return numbers, None
    columns = tuple(sorted(numbers.values()))
    return {name: columns.index(number) for name, number in numbers.items()}, columns


def _statistics(
    term: BatchNormTerm, tasks: Mapping[str, ReadyTask], others: Sequence[ImageItem], processor: Any
) -> tuple[Pixels, ...]:
    """Pixels of batch-norm statistics, mixed, in batches of sizes that differ by one at most.

    Raises:
        FitnessError: fewer than two images, of which there is no variance.
    """
    if others:
        chosen = [others[i] for i in evenly(["" for _ in others], term.images, term.seed)]
        pixels = processed(chosen, processor, 2**62, "")
    else:
        names = [name for name, task in tasks.items() for _ in task.labels]
        every = [(name, i) for name, task in tasks.items() for i in range(len(task.labels))]
        pixels = np.stack([tasks[every[k][0]].pixels[every[k][1]] for k in evenly(names, term.images, term.seed)])
    if len(pixels) < 2:
        raise FitnessError("batch-norm statistics are of one image", "2 or more", "set fitness.batch_norm.folder")
    order = np.random.default_rng(term.seed).permutation(len(pixels))
    return tuple(pixels[own] for own in np.array_split(order, min(-(-len(order) // term.batch_size), len(order) // 2)))


def _text(
    tasks: Mapping[str, ReadyTask],
    heads: ZeroShot | None,
    how: How,
    statistics: Sequence[Pixels],
    dtype: torch.dtype,
    settings: str,
) -> str:
    found = {
        "versions": {name: importlib.metadata.version(name) for name in ("transformers", "torch", "pillow")},
        "processor": settings,
        "batch_size": how.batch_size,
        "dtype": str(dtype),
        "heads": heads.digest() if heads is not None else "",
        "batch_norm": digest_of(statistics) if statistics else "",
        "tasks": [
            [
                name,
                digest_of([task.pixels]),
                hashlib.sha256(task.labels.tobytes()).hexdigest(),
                list(task.columns or ()),
                [[metric.name, metric.weight] for metric in task.term.metrics],
                [task.term.weight, task.term.objective],
            ]
            for name, task in tasks.items()
        ],
    }
    return json.dumps(found, sort_keys=True)

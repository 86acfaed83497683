"""Everything about images that is made once: pixels, labels, heads; and how a model is scored on them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import FitnessError
from evomerge.models.loaded import LoadedModel
from fitness._images.batch_norm import batch_norms_of, recomputed
from fitness._images.pixels import Pixels, digest_of, load_processor, processed, settings_of
from fitness._images.sources import ImageItem, ImageSource
from fitness._images.statistics import statistics_of
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
        source: where they are from, and their classes.
    """

    term: ImageTerm
    pixels: Pixels
    source: ImageSource


@dataclass(frozen=True)
class Prepared:
    """What `prepare` makes.

    Attributes:
        tasks: by name.
        heads: of zero-shot classification; ``None`` where the model has a head.
        how: what holds for all.
        statistics: pixels that batch-norm statistics are of, in batches; empty where none are to be computed.
        text: what a fingerprint is of.
    """

    tasks: Mapping[str, ReadyTask]
    heads: ZeroShot | None
    how: How
    statistics: tuple[Pixels, ...]
    text: str

    @torch.no_grad()
    def outputs(
        self, model: LoadedModel, name: str, places: Sequence[int] | None, columns: Sequence[int] | None
    ) -> tuple[NDArray[np.float64], float]:
        """Logits of a task's images, and seconds inside model calls.

        Args:
            model: with the task's head in place.
            name: of the task.
            places: of the images; ``None`` for all.
            columns: of the head's classes those that count; ``None`` for all.

        Returns:
            Float64 of shape (images, classes).

        Raises:
            FitnessError: outputs that are not finite, naming the image.
        """
        task, found, start = self.tasks[name], [], time.perf_counter()
        chosen = list(range(len(task.pixels))) if places is None else list(places)
        training = model.module.training
        model.module.eval()
        try:
            for first in range(0, len(chosen), self.how.batch_size):
                batch = self._given(model, task.pixels[chosen[first : first + self.how.batch_size]])
                if self.heads is not None:
                    logits = self.heads.logits(model.module, batch, name)
                else:
                    logits = model.module(pixel_values=batch).logits
                found.append((logits if columns is None else logits[:, list(columns)]).double().cpu())
        finally:
            model.module.train(training)
        array: NDArray[np.float64] = torch.cat(found).numpy()
        wild = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(wild):
            where = task.source.items[chosen[int(wild[0])]].where
            raise FitnessError(f"the model's outputs for {where} are not finite", "finite weights")
        return array, time.perf_counter() - start

    def batch_norms(self, model: LoadedModel) -> dict[str, torch.Tensor]:
        """Statistics of the model's batch norms, by buffer; none where none are to be computed."""
        if not self.statistics:
            return {}
        return recomputed(model.module, [self._given(model, own) for own in self.statistics])

    @staticmethod
    def _given(model: LoadedModel, pixels: Pixels) -> torch.Tensor:
        return torch.from_numpy(np.array(pixels)).to(model.device, model.dtype)


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
        tasks[term.name] = ReadyTask(term, pixels, source)
    statistics: tuple[Pixels, ...] = ()
    if how.batch_norm is not None and batch_norms_of(model.module):
        statistics = statistics_of(how.batch_norm, {name: own.pixels for name, own in tasks.items()}, others, processor)
    text = _text(tasks, heads, how, statistics, model.dtype, settings_of(processor))
    return Prepared(tasks, heads, how, statistics, text)


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
                [task.term.head, sorted(task.term.labels.items()), task.term.among],
                hashlib.sha256("\n".join(item.label for item in task.source.items).encode()).hexdigest(),
                list(task.source.classes),
                [[metric.name, metric.weight] for metric in task.term.metrics],
                [task.term.weight, task.term.objective],
            ]
            for name, task in tasks.items()
        ],
    }
    return json.dumps(found, sort_keys=True)

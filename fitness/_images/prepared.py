"""Everything about images that is made once: pixels, labels, heads; and how a model is scored on them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import FitnessError
from evomerge.models.loaded import LoadedModel
from fitness._images.pixels import Pixels, digest_of
from fitness._images.ready import How, Processed, evaluating, given, process, require_module
from fitness._images.sources import ImageItem, ImageSource
from fitness._images.terms import ImageTerm
from fitness._images.zero_shot import ZeroShot, build, has_head


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
        images: as the model reads them.
        text: what a fingerprint is of.
    """

    tasks: Mapping[str, ReadyTask]
    heads: ZeroShot | None
    how: How
    images: Processed
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
        with evaluating(model.module):
            for first in range(0, len(chosen), self.how.batch_size):
                batch = given(model, task.pixels[chosen[first : first + self.how.batch_size]])
                if self.heads is not None:
                    logits = self.heads.logits(model.module, batch, name)
                else:
                    logits = model.module(pixel_values=batch).logits
                found.append((logits if columns is None else logits[:, list(columns)]).double().cpu())
        array: NDArray[np.float64] = torch.cat(found).numpy()
        wild = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(wild):
            where = task.source.items[chosen[int(wild[0])]].where
            raise FitnessError(f"the model's outputs for {where} are not finite", "finite weights")
        return array, time.perf_counter() - start


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
    require_module(model)
    heads = None
    if not has_head(model.module.config):
        heads = build(terms, {name: own.classes for name, own in sources.items()}, how.other or model.name_or_path)
    images = process(model, {term.name: sources[term.name].items for term in terms}, others, how)
    tasks = {term.name: ReadyTask(term, images.pixels[term.name], sources[term.name]) for term in terms}
    return Prepared(tasks, heads, how, images, _text(tasks, heads, images.text(how, model.dtype)))


def _text(tasks: Mapping[str, ReadyTask], heads: ZeroShot | None, common: Mapping[str, Any]) -> str:
    found = {
        **common,
        "heads": heads.digest() if heads is not None else "",
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

"""Segmentation as a fitness: images with masks, models with a class for every pixel or SAM's kind with prompts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from evomerge.candidate import Part
from evomerge.errors import FitnessError
from evomerge.protocols import Scores
from fitness._images.headed import HeadedImages
from fitness._images.parts import among, places_of
from fitness._lm_eval.terms import plain
from fitness._segmentation.terms import SegmentationTerm, parse_tasks

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel, ModelOutline
    from evomerge.protocols import Estimator
    from evomerge.utils.memory import MemoryPart
    from fitness._segmentation.labels import Classes
    from fitness._segmentation.prepared import Prepared
    from fitness._segmentation.sources import MaskedSource

_MOST_RESPONSES = 20


class SegmentationFitness(HeadedImages):
    """Scores a model by the masks that it gives images.

    Metrics are means over images: ``dice`` and ``iou``, each of an image the mean over the classes that its mask or the
    prediction has; ``accuracy``, the share of pixels that are right; and ``loss``, a pixel's cross-entropy in nats, of
    which less is better. IoU of every class over all images together, and its mean ``miou``, are told beside them.
    Predictions are compared at the mask's size.

    Models whose class is ``...ForSemanticSegmentation`` give every pixel a class. SAM's kind (`SamModel`) is given a
    ``prompt`` for every class that a mask has but the background: its box, or the point furthest from its edge; or
    prompts of the data. It gives one mask for each, and an image's values are the means over them. Of image encoders
    alone (`SamVisionModel`) the rest is that of `sam`.

    Images are decoded once, made tensors by the model's own image processor, and read in the same batches every time.

    Args:
        tasks: mappings with ``task`` (a name), ``images`` (a folder with ``images`` and ``masks`` in it, or a CSV,
            JSONL or Parquet table), ``head`` (the source whose head scores it), ``image`` and ``mask`` (columns of a
            table), ``labels`` (number in the masks -> class of the model, where they differ), ``ignore`` (numbers that
            do not count; 255 by default, none with prompts), ``background`` (the number that counts in no mean over
            classes; none by default, 0 with prompts), ``prompt`` (``box`` or ``point``), ``prompts`` (the column that
            has them), ``limit``, ``metrics``, ``weight`` and ``objective``.
        metrics: of tasks that name none: a name, a list, or name -> weight; ``dice`` for ``None``.
        part: which part of the images counts: ``search``, ``validation`` or ``held_out``; ``None`` for all.
        split: shares of the parts: ``{held_out: 0.3, validation: 0.1, seed: 0}``. An image lies in one part, by its
            hash.
        sam: the model whose prompt encoder and mask decoder score image encoders: a folder or a hub id.
        processor: folder with an image processor; ``None`` for that of the pool's base.
        batch_norm: whether batch-norm statistics are computed again; or a mapping with ``images`` (how many),
            ``folder`` (of others), ``batch_size``, ``seed``.
        batch_size: images of a forward; with prompts each has its own.
        cache_size: bytes of processed images in memory; more lie in a file. Masks are always in memory.
        cache: folder for such files, which other runs then find; ``None`` for a temporary one.
        seed: of the draw where there is a limit.

    Raises:
        ConfigError: an argument out of its range, naming it.
    """

    reads: ClassVar[str] = "masks"
    zero_hint: ClassVar[str] = (
        "see that labels of the task translate numbers of the masks into classes of the model, and that ignore, "
        "background and fitness.processor are those that the models were trained with"
    )

    _terms: tuple[SegmentationTerm, ...]
    _prepared: Prepared | None

    def __init__(
        self,
        tasks: list[dict[str, Any]],
        *,
        metrics: str | list[str] | dict[str, Any] | None = None,
        part: str | None = None,
        split: dict[str, Any] | None = None,
        sam: str | None = None,
        processor: str | None = None,
        batch_norm: bool | dict[str, Any] | None = True,
        batch_size: int = 16,
        cache_size: str | int = "2GB",
        cache: str | None = None,
        seed: int = 0,
    ) -> None:
        self._terms = parse_tasks(plain(tasks), plain(metrics))
        self._set_up(part, split, batch_norm, batch_size, cache_size, cache, seed, processor, sam)
        self._classes: dict[str, tuple[Mapping[Any, Any], Classes]] = {}
        self._reduced = False
        self._prepared = None

    def check_files(self) -> None:
        """Raise `FitnessError` for a folder or table that is not there."""
        from fitness._segmentation.sources import check_place

        for place, term in enumerate(self._terms):
            check_place(term, f"tasks[{place}].images")

    def check_model(self, config: Any, folder: str) -> None:
        """Check that such models give masks of the kind that tasks ask for; `check` comes before.

        Args:
            config: the transformers configuration.
            folder: the model's.

        Raises:
            FitnessError: no image processor, or one that crops; prompts for a model that reads none, or the other way
                round; a class that the model does not have.
        """
        from fitness._images.pixels import check_processor
        from fitness._segmentation.models import find_sam, kind_of, processor_settings

        check_processor(self._processor or folder, given=bool(self._processor))
        self._reduced = bool(processor_settings(self._processor or folder).get("do_reduce_labels"))
        kind = kind_of(config)
        for place, term in enumerate(self._terms):
            if kind == "classes" and term.prompt:
                what = f"tasks[{place}].prompt is {term.prompt}, and a {config.model_type} reads no prompts"
                raise FitnessError(what, "a model of SAM's kind", "leave it out")
            if kind != "classes" and not term.prompt:
                what = f"tasks[{place}] has no prompt, which a {config.model_type} needs"
                raise FitnessError(what, "box or point", f"set tasks[{place}].prompt=box")
            if kind != "classes" and term.head:
                raise FitnessError(f"tasks[{place}].head is {term.head!r}", "heads are of models with classes")
            if kind == "classes" and not term.head:
                self._classes_of(term, config.id2label)
        if kind == "encoder":
            find_sam(self._other)
        elif self._other:
            raise FitnessError(f"sam is {self._other}, and the pool's models give masks", "nothing", "leave it out")

    def memory(self, model: ModelOutline) -> list[MemoryPart]:
        """What processed images and masks take beside a model's weights; `check` comes before."""
        count, nbytes = sum(self.items().values()), sum(own.mask_bytes for own in self._read().values())
        return [*super().memory(model), MemoryPart("masks", nbytes, f"{count:,} masks", "tasks")]

    def build_estimator(self) -> Estimator:
        """Build what tells of some images what all would give: every metric is a mean over images."""
        from fitness.estimators.stratified_mean import StratifiedMean

        return StratifiedMean(self.shares(), self.objectives)

    def cautions(self) -> list[str]:
        """Of masks of one class or read as the image processor says, and of images with nothing to be asked for."""
        found = []
        for term in self._terms:
            count = self._read()[term.name].left_out
            if count:
                found.append(f"tasks.{term.name}: images that have nothing but background, and are left out: {count}")
            if self._reduced and not term.labels and not term.prompt:
                found.append(f"tasks.{term.name}: 0 in masks is no class and 1 the first: do_reduce_labels is set")
            if not term.prompt and len(numbers := self._read()[term.name].numbers.difference(term.ignored)) == 1:
                what = f"all masks have {min(numbers)} alone, and nothing to be told from it"
                found.append(f"tasks.{term.name}: {what}; see images, labels and ignore")
        return found

    def prepare(self, model: LoadedModel) -> None:
        """Process the images.

        Raises:
            FitnessError: what `check` and `check_model` find; an image that cannot be decoded.
        """
        from fitness._segmentation.models import processor_settings
        from fitness._segmentation.prepared import prepare

        self._prepared = None
        sources = self._read()
        self._reduced = bool(processor_settings(self._processor or model.name_or_path).get("do_reduce_labels"))
        self._prepared = prepare(model, self._terms, sources, self._others, self._how())

    def run_switched(self, switch: Callable[[str], LoadedModel], part: Part | None = None) -> Scores:
        """`run`, with the model that ``switch(source)`` gives for the tasks of each head."""
        from fitness._classification.scored import objectives_of
        from fitness._segmentation.prepared import told
        from fitness._segmentation.scored import by_class, kept_items

        ready, start, seconds, counts = self._ready(), time.perf_counter(), 0.0, self.items()
        places = places_of(part, counts)
        values, items, responses = dict[str, float](), dict[str, Any](), dict[str, list[str]]()
        model, on = None, ""
        for term in sorted(self._terms, key=lambda term: term.head):  # one head after the other
            if model is None or term.head != on:
                model, on = switch(term.head), term.head
            own = places[term.name]
            classes = None if term.prompt else self._classes_of(term, model.module.config.id2label)
            scores, took = ready.scores(model, term.name, own, classes)
            seconds += took
            found = kept_items(term, scores)
            values |= {name: float(column.mean()) for name, column in found.items()}
            if classes is not None:
                whole = by_class(scores, classes.names, classes.background)
                values |= {f"{term.name}/{name}": value for name, value in whole.items()}
            chosen = range(counts[term.name]) if own is None else own
            items |= {name: among(column, list(chosen), counts[term.name]) for name, column in found.items()}
            said = {place: told(own, self._names(term, place)) for place, own in zip(chosen, scores, strict=True)}
            responses[term.name] = [said.get(place, "") for place in range(min(_MOST_RESPONSES, counts[term.name]))]
        timing = {"model": seconds, "other": time.perf_counter() - start - seconds}
        metrics = {name: values[name] for term in self._terms for name in values if name.startswith(f"{term.name}/")}
        return Scores(objectives_of(self._terms, metrics), metrics, items, timing, responses)

    def texts(self, most: int) -> dict[str, list[dict[str, str]]]:
        """Where the first images of every task are, and the numbers in their masks: for reports."""
        return {
            name: [
                {"prompt": item.image.where, "target": ", ".join(map(str, np.unique(item.mask).tolist()))}
                for item in source.items[:most]
            ]
            for name, source in self._read().items()
        }

    def fingerprint(self) -> str:
        """``sha256:`` over pixels, masks, prompts, metrics, dtype, batches and versions; not over places of files."""
        labels = [[term.name, sorted(term.labels.items()), self._reduced] for term in self._terms]
        text = json.dumps([self._ready().text, labels])
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def _names(self, term: SegmentationTerm, place: int) -> list[str]:
        """What classes, or things on an image, are called."""
        if not term.prompt:
            return list(self._classes[term.name][1].names)
        prompts = self._read()[term.name].items[place].prompts
        return [str(own) for own in prompts.classes] if prompts is not None else []

    def _classes_of(self, term: SegmentationTerm, id2label: Mapping[Any, Any]) -> Classes:
        """How a task's masks are read for a head of these classes."""
        from fitness._segmentation.labels import read_classes

        known = self._classes.get(term.name)
        if known is None or known[0] != id2label:
            key, source = f"tasks[{self._terms.index(term)}]", self._read()[term.name]
            found = read_classes(term, key, source, id2label, reduced=self._reduced)
            self._classes[term.name] = known = dict(id2label), found
        return known[1]

    def _find(self, term: SegmentationTerm, key: str) -> MaskedSource:
        from fitness._segmentation.sources import read_source

        return read_source(term, key, self._split, self._seed)

    def _learn_classes(self, term: SegmentationTerm, id2label: Mapping[Any, Any]) -> object:
        return self._classes_of(term, id2label)

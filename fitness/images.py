"""Image classification as a fitness: folders or tables of images, models with heads or zero-shot ones."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.candidate import Part
from evomerge.errors import FitnessError
from evomerge.protocols import Scores
from fitness._classification.metric_terms import parse_per_class
from fitness._images.headed import HeadedImages
from fitness._images.labels import Answers, right_answers
from fitness._images.parts import among, places_of
from fitness._images.sources import ImageSource, check_images, read_source
from fitness._images.terms import TEMPLATES, ImageTerm, parse_tasks
from fitness._lm_eval.terms import plain

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel
    from evomerge.protocols import Estimator
    from fitness._images.prepared import Prepared


_MOST_RESPONSES = 20


class ImagesFitness(HeadedImages):
    """Scores a model on images of known classes, or several heads on one encoder.

    Metrics, values by image, objectives and estimates are those of `ClassificationFitness`: ``accuracy``, ``f1``
    (macro), ``matthews`` and ``loss``. Images are decoded once, made tensors by the model's own image processor, and
    read in the same batches every time.

    Models whose class is ``...ForImageClassification`` are asked for their logits; with heads of their own
    (`pool.heads`) each task names its ``head``. Others are taken for image towers, CLIP's say: their features are
    compared with what the text tower of `clip` makes of prompts, once, when the fitness is prepared: the zero-shot
    heads of task arithmetic's eight tasks (arXiv 2212.04089, section 4).

    Where a model has batch norms, `batch_norms` gives the statistics of its own activations on images of the search: a
    search puts them into every merged model, and an export writes them.

    Args:
        tasks: mappings with ``task`` (a name), ``images`` (a folder with a folder for each class; a CSV, JSONL or
            Parquet table), ``head`` (the source whose head scores it), ``image`` and ``label`` (columns of a table),
            ``labels`` (class -> class of the model, where they differ), ``limit``, ``among`` (``all`` classes of the
            head or the ``task``'s), ``templates``, ``names`` (class -> what prompts call it), ``metrics``,
            ``per_class``, ``weight`` and ``objective``.
        metrics: of tasks that name none: a name, a list, or name -> weight; ``accuracy`` for ``None``.
        per_class: whether metrics have the F1 of each class too, of tasks that do not say.
        part: which part of the images counts: ``search``, ``validation`` or ``held_out``; ``None`` for all.
        split: shares of the parts: ``{held_out: 0.3, validation: 0.1, seed: 0}``. An image lies in one part, by its
            hash.
        templates: of prompts, of tasks that name none.
        clip: the model with the text tower: a folder or a hub id; ``None`` for the pool's base.
        processor: folder with an image processor; ``None`` for that of the pool's base.
        batch_norm: whether batch-norm statistics are computed again; or a mapping with ``images`` (how many),
            ``folder`` (of others), ``batch_size``, ``seed``.
        batch_size: images of a forward.
        cache_size: bytes of processed images in memory; more lie in a file.
        cache: folder for such files, which other runs then find; ``None`` for a temporary one.
        seed: of the draw where there is a limit.

    Raises:
        ConfigError: an argument out of its range, naming it.
    """

    _terms: tuple[ImageTerm, ...]
    _prepared: Prepared | None

    def __init__(
        self,
        tasks: list[dict[str, Any]],
        *,
        metrics: str | list[str] | dict[str, Any] | None = None,
        per_class: bool = False,
        part: str | None = None,
        split: dict[str, Any] | None = None,
        templates: str | list[str] | None = None,
        clip: str | None = None,
        processor: str | None = None,
        batch_norm: bool | dict[str, Any] | None = True,
        batch_size: int = 64,
        cache_size: str | int = "2GB",
        cache: str | None = None,
        seed: int = 0,
    ) -> None:
        self._terms = parse_tasks(plain(tasks), plain(metrics), plain(templates), parse_per_class(per_class))
        self._set_up(part, split, batch_norm, batch_size, cache_size, cache, seed, processor, clip)
        self._templates = templates is not None
        self._gold: dict[str, Answers] = {}
        self._known: dict[str, Mapping[Any, Any] | None] = {}
        self._prepared = None

    def check_files(self) -> None:
        """Raise `FitnessError` for a folder or table that is not there."""
        for place, term in enumerate(self._terms):
            check_images(term.images, f"tasks[{place}].images")

    def check_model(self, config: Any, folder: str) -> None:
        """Check that there is an image processor, and prompts where there is no head; `check` comes before.

        Args:
            config: the transformers configuration.
            folder: the model's.

        Raises:
            FitnessError: no image processor, a prompt for no class, a class that the head does not have; what is of
                zero-shot heads where models have their own; no text tower where they have none.
        """
        from fitness._images.pixels import check_processor
        from fitness._images.zero_shot import check_text_tower, has_head, prompts

        check_processor(self._processor or folder, given=bool(self._processor))
        headed = has_head(config)
        if headed:
            self._refuse_prompts(config)
        else:
            check_text_tower(self._other or folder)
        for place, term in enumerate(self._terms):
            if not headed:
                prompts(term, f"tasks[{place}]", self._read()[term.name].classes)
                self._gold_of(term, None)
            elif not term.head:
                self._gold_of(term, config.id2label)

    def build_estimator(self) -> Estimator:
        """Build what tells of some images what all would give; `check_model` and `check_labels` come before.

        Raises:
            FitnessError: they did not.
        """
        from fitness._classification.estimator import PredictionsEstimator

        for term in self._terms:
            if term.name not in self._gold:
                raise FitnessError(f"the classes of {term.name} are not known", "check_model comes first")
        gold = {name: own.places.astype(np.float64) for name, own in self._gold.items()}
        return PredictionsEstimator(self._terms, self.objectives, gold)

    def cautions(self) -> list[str]:
        """None."""
        return []

    def prepare(self, model: LoadedModel) -> None:
        """Process the images, and build zero-shot heads where the model has none of its own.

        Raises:
            FitnessError: what `check` and `check_model` find; an image that cannot be decoded.
        """
        from fitness._images.prepared import prepare

        self._prepared = None
        sources = self._read()
        self._prepared = prepare(model, self._terms, sources, self._others, self._how())

    def run_switched(self, switch: Callable[[str], LoadedModel], part: Part | None = None) -> Scores:
        """`run`, with the model that ``switch(source)`` gives for the tasks of each head."""
        from fitness._classification.scored import kept_items, objectives_of, score_classes

        ready, start, seconds = self._ready(), time.perf_counter(), 0.0
        places = places_of(part, self.items())
        values, items, responses = dict[str, float](), dict[str, Any](), dict[str, list[str]]()
        model, on = None, ""
        for term in sorted(self._terms, key=lambda term: term.head):  # one head after the other
            if model is None or term.head != on:
                model, on = switch(term.head), term.head
            own = places[term.name]
            gold = self._gold_of(term, None if ready.heads is not None else model.module.config.id2label)
            logits, took = ready.outputs(model, term.name, own, gold.columns)
            seconds += took
            right, wanted = gold.places if own is None else gold.places[own], {metric.name for metric in term.metrics}
            found, columns = score_classes(right, logits, gold.names if term.per_class else (), wanted)
            values |= {f"{term.name}/{name}": value for name, value in found.items()}
            told = [gold.names[number] for number in logits.argmax(-1)]
            if own is None:
                items |= kept_items(term, columns)
            else:
                items |= {
                    name: among(column, own, len(gold.places)) for name, column in kept_items(term, columns).items()
                }
                by_place = dict(zip(own, told, strict=True))
                told = [by_place.get(place, "") for place in range(min(len(gold.places), _MOST_RESPONSES))]
            responses[term.name] = told[:_MOST_RESPONSES]
        timing = {"model": seconds, "other": time.perf_counter() - start - seconds}
        metrics = {name: values[name] for term in self._terms for name in values if name.startswith(f"{term.name}/")}
        return Scores(objectives_of(self._terms, metrics), metrics, items, timing, responses)

    def texts(self, most: int) -> dict[str, list[dict[str, str]]]:
        """Where the first images of every task are, and their classes: for reports."""
        return {
            name: [{"prompt": item.where, "target": item.label} for item in source.items[:most]]
            for name, source in self._read().items()
        }

    def fingerprint(self) -> str:
        """``sha256:`` over pixels, classes, heads, metrics, dtype, batches and versions; not over places of files."""
        return f"sha256:{hashlib.sha256(self._ready().text.encode()).hexdigest()}"

    def _refuse_prompts(self, config: Any) -> None:
        """`FitnessError` where something is said of prompts, and models have heads, which read none."""
        given = {"clip": bool(self._other), "templates": self._templates}
        for place, term in enumerate(self._terms):
            given |= {
                f"tasks[{place}].templates": term.templates != TEMPLATES,
                f"tasks[{place}].names": bool(term.names),
            }
        key = next((key for key, said in given.items() if said), None)
        if key is not None:
            what = f"{key} is set, and the pool's models have heads for classes ({config.architectures[0]})"
            raise FitnessError(what, "image towers without a head, which prompts make one for", "leave it out")

    def _gold_of(self, term: ImageTerm, id2label: Mapping[Any, Any] | None) -> Answers:
        """The right answers of a task, told by the classes of a head; by the task's own for ``None``."""
        if term.name not in self._gold or self._known[term.name] != id2label:
            key = f"tasks[{self._terms.index(term)}]"
            self._gold[term.name] = right_answers(term, key, self._read()[term.name], id2label)
            self._known[term.name] = None if id2label is None else dict(id2label)
        return self._gold[term.name]

    def _find(self, term: ImageTerm, key: str) -> ImageSource:
        return read_source(term, key, self._split, self._seed)

    def _learn_classes(self, term: ImageTerm, id2label: Mapping[Any, Any]) -> object:
        return self._gold_of(term, id2label)

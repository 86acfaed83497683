"""Pipelines that draw images as a fitness: fixed prompts and noise, few steps, scores of what is drawn."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from evomerge.candidate import Part
from evomerge.errors import FitnessError, nearest
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Scores
from evomerge.run.ratings.rules import RatingRules
from fitness._documents import Document
from fitness._files.terms import parse_raters, refuse_people, scale_of
from fitness._images.parts import among, places_of
from fitness._lm_eval.terms import plain
from fitness._text_files import check_text_file
from fitness._text_to_image.terms import (
    BY_SET,
    IMAGES,
    RATING,
    Drawing,
    check_compared,
    objectives_of,
    parse_metrics,
    parse_prompts,
    parse_size,
    parse_task,
    read_drawings,
    shares_of,
)
from fitness._unlabelled.values import finite, whole

if TYPE_CHECKING:
    from evomerge.models.loaded import LoadedModel
    from evomerge.protocols import Estimator
    from fitness._text_to_image.prepared import Prepared

_MOST_STEPS = 1000
_MOST_IMAGES = 1_000_000


class TextToImageFitness:
    """Scores the network of a pipeline by the images that it draws, for pools with `pool.network`.

    Every candidate draws the same images: the same prompts, the same noise, in the same batches. The pipeline is called
    as diffusers has it, so that the exported one draws the same pixels. Embeddings of prompts, noise and features of
    what images are compared with are computed once.

    Scores (`metrics`), by image except for ``fid``:

    - ``clip``: cosine of the image's and its prompt's features (arXiv 2104.08718, without its factor of 2.5).
    - ``ncs``: M2N2's: cosine of the image's features and those of the prompt's reference image, brought to 0 to 1
      (arXiv 2508.16204, section 4.3). `strategy.shift` subtracts the population's worst of each.
    - ``kid``, ``fid``: distances of all images' features to those of real ones (arXiv 1801.01401, 1706.08500).
    - ``scorer``: an object's, called with images, uint8 of shape (images, height, width, channels), and prompts.
    - ``rating``: people's, alone: the search waits for them, as for those of `FilesFitness`.

    Args:
        prompts: a file (a prompt a line, or JSONL with ``prompt`` and, for ``ncs``, ``image``: a path from the file's
            folder), or a list of prompts; ``None`` for pipelines that draw without any.
        images: of each prompt; without prompts, of all.
        limit: the first so many prompts.
        seed: of the first image's noise; each has the next one.
        steps: of the sampler.
        guidance: its scale; ``None`` for the pipeline's own.
        sampler: a scheduler class of diffusers, ``DPMSolverMultistepScheduler`` say; ``None`` for the pipeline's own.
        size: height and width; ``None`` for the pipeline's own.
        arguments: further arguments of the pipeline's call.
        metrics: scores: a name, a list, or name -> weight. ``None``: ``scorer`` where there is one, else ``clip``.
        objectives: score -> name of the objective that it counts in; ``score`` for others.
        clip: model of images and texts for ``clip`` and ``ncs``: a folder or a hub id.
        features: for ``kid`` and ``fid``: an image model's folder or hub id, ``pixels``, or a node: an object that is
            called with images and gives an array of shape (images, width).
        references: for ``kid`` and ``fid``: a folder of real images.
        scorer: a node: an object that is called with images and prompts and gives a number for each. An attribute
            ``direction`` that is ``minimize`` says that less is better.
        batch_size: images of a call.
        keep: how many images of a candidate the run folder has, small.
        thumbnail: their longer side, in pixels; of all images where people rate them.
        raters: of people: how many must have rated a candidate, or their names.
        scale: of people: the lowest and the highest score; none of pairs.
        by: whether people score each ``item``, or say of each ``pair`` of images, one of them another candidate's from
            the same noise, which is better: the objective is then the strength after Bradley and Terry.
        task: what images are called in metrics and items; each part of `SeveralFitness` needs a name of its own.

    Raises:
        ConfigError: an argument out of its range, naming it.
    """

    scores_pipelines: ClassVar[bool] = True

    def __init__(
        self,
        prompts: str | list[str] | None = None,
        *,
        images: int = 1,
        limit: int | None = None,
        seed: int = 0,
        steps: int = 8,
        guidance: float | None = None,
        sampler: str | None = None,
        size: list[int] | None = None,
        arguments: dict[str, Any] | None = None,
        metrics: str | list[str] | dict[str, float] | None = None,
        objectives: dict[str, str] | None = None,
        clip: str | None = None,
        features: Any = None,
        references: str | None = None,
        scorer: Any = None,
        batch_size: int = 8,
        keep: int = 8,
        thumbnail: int = 128,
        raters: int | list[str] = 1,
        scale: list[float] | None = [1.0, 5.0],  # noqa: B006  # never changed, and shown by what reads signatures
        by: Literal["item", "pair"] = "item",
        task: str = IMAGES,
    ) -> None:
        self._prompts = parse_prompts(plain(prompts))
        self._task = parse_task(task)
        self._images = whole(images, "images", 1, _MOST_IMAGES)
        self._limit = None if limit is None else whole(limit, "limit", 1, _MOST_IMAGES)
        self._seed = whole(seed, "seed", 0, 2**62)
        self._terms = parse_metrics(plain(metrics), plain(objectives), scorer)
        self._keep, self._thumbnail = whole(keep, "keep", 0, 1000), whole(thumbnail, "thumbnail", 16, 1024)
        check_compared(self._terms, self._prompts, clip, features, references)
        self._how_values: dict[str, Any] = {
            "steps": whole(steps, "steps", 1, _MOST_STEPS),
            "guidance": None if guidance is None else finite(guidance, "guidance"),
            "sampler": sampler or "",
            "size": parse_size(plain(size)),
            "arguments": dict(plain(arguments) or {}),
            "batch_size": whole(batch_size, "batch_size", 1, 2**20),
            "clip": clip or "",
            "features": features,
            "references": references or "",
            "scorer": scorer,
        }
        self._raters, self._by, self._scale = parse_raters(plain(raters)), by, scale_of(plain(scale), by)
        self._by_people = self._terms[0].name == RATING
        if not self._by_people:
            refuse_people(self._raters, by, self._scale)
        if self._by_people:
            self.rating = self._rating
        self._drawings: list[Drawing] | None = None
        self._documents: list[Document] = []
        self._prepared: Prepared | None = None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those of the scores; all to be maximised."""
        return objectives_of(self._terms)

    def check(self) -> None:
        """Read the prompts, once.

        Raises:
            FitnessError: a file that is missing or cannot be read; no reference image where one is needed; no image in
                the folder of references.
            ConfigError: diffusers or Pillow is not installed.
        """
        from evomerge.models.pipelines.libraries import require_diffusers
        from fitness._images.decoding import require_pillow

        require_diffusers()
        require_pillow()
        drawings = self._read()
        if any(term.name == "ncs" for term in self._terms):
            lacking = next((own.prompt for own in drawings if not own.reference), None)
            if lacking is not None:
                raise FitnessError(
                    f"prompt {lacking[:60]!r} has no reference image",
                    'JSONL with one for each prompt: {"prompt": "a red bicycle", "image": "bicycle.jpg"}',
                )
        from fitness._text_to_image.features import check_compared_with, check_images

        names = {term.name for term in self._terms}
        if "ncs" in names:
            check_images(dict.fromkeys(own.reference for own in drawings))
        check_compared_with(names, self._how_values)
        if names & set(BY_SET) and len(drawings) < 2:
            raise FitnessError("one image is drawn", "two or more for kid and fid", "raise images")

    def check_files(self) -> None:
        """Raise `FitnessError` for a file of prompts that is not there."""
        if isinstance(self._prompts, str):
            check_text_file(self._prompts, "prompts")

    def check_model(self, config: Any, folder: str) -> None:
        """Check that the pipeline takes what it will be given; `check` comes before.

        Raises:
            ConfigError: a sampler that there is not.
            FitnessError: prompts for a pipeline that takes none, or none for one that needs some.
        """
        from evomerge.models.pipelines.assembling import check_sampler
        from evomerge.models.pipelines.libraries import call_arguments

        if self._how_values["sampler"]:
            check_sampler(self._how_values["sampler"], config.rest)
        takes = call_arguments(config.rest.pipeline)
        own = {"prompts": self._prompts, **self._how_values}
        for key, name in {"prompts": "prompt", "guidance": "guidance_scale", "size": "height"}.items():
            if own[key] is not None and name not in takes:
                raise FitnessError(f"{key} is set, and {config.rest.pipeline} takes none", "leave it out")
        if self._prompts is None and "prompt" in takes:
            raise FitnessError(
                f"{config.rest.pipeline} draws after prompts, and prompts is not set", "a file, or a list"
            )
        for name in self._how_values["arguments"]:
            if name not in takes:
                raise FitnessError(f"arguments has {name!r}", nearest(name, takes), f"see {config.rest.pipeline}")

    def items(self) -> dict[str, int]:
        """How many images there are; `check` comes before."""
        return {self._task: len(self._read())}

    def work(self) -> dict[str, int]:
        """What a candidate asks of a model: ``documents`` and ``texts``, which are images; ``drawn``: steps of all."""
        count = len(self._read())
        return {"documents": count, "texts": count, "written": 0, "drawn": count * self._how_values["steps"]}

    def shares(self) -> list[MetricShare]:
        """What every score counts in the objectives."""
        return shares_of(self._terms, self._task)

    def build_estimator(self) -> Estimator:
        """Build what tells of some images what all would give; `FitnessError` for distances of sets, and people."""
        from fitness.estimators.stratified_mean import StratifiedMean

        for term in self._terms:
            if term.name in (*BY_SET, RATING):
                raise FitnessError(f"{term.name} is of all images together", "clip, ncs or scorer")
        return StratifiedMean(self.shares(), self.objectives)

    def cautions(self) -> list[str]:
        """Where images are too few for a distance of sets."""
        count = len(self._read())
        few = [term.name for term in self._terms if term.name in BY_SET and count < 50]
        return [f"{' and '.join(few)} of {count} images hold much noise: raise images"] if few else []

    def prepare(self, model: LoadedModel) -> None:
        """Assemble the pipeline, and compute the features of what images are compared with.

        Raises:
            FitnessError: what `check` and `check_model` find; what is compared with cannot be read.
        """
        from fitness._text_to_image.prepared import How, Prepared

        self._prepared = None
        self._prepared = Prepared(model, self._read(), self._terms, How(**self._how_values))

    def run(self, model: LoadedModel, part: Part | None = None) -> Scores:
        """Draw, and score what was drawn.

        Args:
            part: places of images, some or all; in batches of their own, equal to rounding.

        Raises:
            FitnessError: pixels or scores that are not finite; a part that is none.
        """
        from fitness._text_to_image.features import thumbnail

        ready, start = self._ready(), time.perf_counter()
        count = len(self._read())
        places = places_of(part, self.items())[self._task]
        images = ready.draw(model, places)
        drawn = time.perf_counter() - start
        if self._by_people:  # who are asked for all
            pictures = {self._task: [thumbnail(image, self._thumbnail) for image in images]}
            return Scores({}, seconds={"model": drawn, "other": 0.0}, responses=pictures)
        values, by_image = ready.scores(images, places)
        chosen = list(range(count)) if places is None else places
        items = {f"{self._task}/{name}": among(np.asarray(own), chosen, count) for name, own in by_image.items()}
        kept = {place: image for place, image in zip(chosen, images, strict=True) if place < self._keep}
        shown = [thumbnail(kept[n], self._thumbnail) if n in kept else "" for n in range(min(count, self._keep))]
        sums = {own.name: 0.0 for own in self.objectives}
        weights = dict.fromkeys(sums, 0.0)
        for term in self._terms:
            sums[term.objective] += term.factor * values[term.name]
            weights[term.objective] += term.weight
        objectives = {name: total / weights[name] for name, total in sums.items()}
        metrics = {f"{self._task}/{term.name}": values[term.name] for term in self._terms}
        seconds = {"model": drawn, "other": time.perf_counter() - start - drawn}
        return Scores(objectives, metrics, items, seconds, {self._task: shown} if shown else {})

    def _rating(self) -> RatingRules:
        """What is asked of raters; `check` comes before."""
        asked = [own.prompt or f"image {place}" for place, own in enumerate(self._read())]
        rest = *self._scale, *self._raters, {self._task: len(asked)}, {self._task: asked}
        return RatingRules(self.objectives[0].name, "maximize", self._by, *rest, shuffle=self._seed)

    def texts(self, most: int) -> dict[str, list[dict[str, str]]]:
        """The first prompts, with the seeds of their noise: for reports."""
        return {self._task: [{"prompt": own.prompt, "target": f"seed {own.seed}"} for own in self._read()[:most]]}

    def documents(self) -> list[tuple[str, str]]:
        """For each image hashes of its prompt with its seed."""
        self._read()
        return list(self._documents)

    def fingerprint(self) -> str:
        """``sha256:`` over prompts, seeds, how is drawn, other parts of the pipeline, what is compared, versions."""
        return f"sha256:{hashlib.sha256(self._ready().text.encode()).hexdigest()}"

    def _read(self) -> list[Drawing]:
        if self._drawings is None:
            self._drawings, self._documents = read_drawings(self._prompts, self._images, self._seed, self._limit)
        return self._drawings

    def _ready(self) -> Prepared:
        if self._prepared is None:
            raise FitnessError("the fitness was not prepared", "prepare comes before run and fingerprint")
        return self._prepared

"""What fitnesses of images have in common: tasks of images, each scored by a head."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from evomerge.candidate import Part
from evomerge.errors import FitnessError
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Scores
from evomerge.utils.memory import MemoryPart
from evomerge.utils.sizes import byte_count, size_text
from fitness._classification.terms import CountedTerm, objective_weights, parse_split, shares_of
from fitness._documents import Document
from fitness._images.decoding import require_pillow, require_whole
from fitness._images.sources import ImageItem, read_folder
from fitness._images.terms import parse_batch_norm
from fitness._lm_eval.terms import plain
from fitness._unlabelled.values import whole

if TYPE_CHECKING:
    import torch

    from evomerge.models.loaded import LoadedModel, ModelOutline
    from fitness._images.ready import How


class HeadedTerm(CountedTerm, Protocol):
    """A task that a head scores."""

    @property
    def head(self) -> str:
        """The source whose head it is; empty for the model's own."""


class Source(Protocol):
    """The images of a task."""

    @property
    def items(self) -> Sequence[Any]:
        """In order."""

    @property
    def documents(self) -> Sequence[Document]:
        """What identifies each."""


class HeadedImages(ABC):
    """Tasks of images; a part of `Fitness` that those who have such tasks share."""

    switch_key: ClassVar[str] = "head"
    reads: ClassVar[str] = "images"
    zero_hint: ClassVar[str] = (
        "see that labels of the task translate classes of the files into the head's id2label, that its head is the "
        "task's, and that fitness.processor is that of the models"
    )

    _terms: Sequence[HeadedTerm]
    _sources: Mapping[str, Source] | None = None
    _others: Sequence[ImageItem] = ()
    _prepared: Any = None

    def _set_up(
        self,
        part: str | None,
        split: Any,
        batch_norm: Any,
        batch_size: int,
        cache_size: str | int,
        cache: str | None,
        seed: int,
        processor: str | None,
        other: str | None,
    ) -> None:
        """Take down the arguments that all have, as `ImagesFitness` explains them.

        Args:
            other: the model that has what the pool's may lack; see `How`.

        Raises:
            ConfigError: one out of its range, naming it.
        """
        self._split = parse_split(part, plain(split))
        self._batch_norm = parse_batch_norm(plain(batch_norm))
        self._batch_size = whole(batch_size, "batch_size", 1, 2**31)
        self._cache_size = byte_count(cache_size, "cache_size")
        self._cache, self._other, self._processor = cache or "", other or "", processor or ""
        self._seed = whole(seed, "seed", 0, 2**63 - 1)

    def check(self) -> None:
        """Find the images, and what is right of them, once.

        Raises:
            FitnessError: a folder or table that is missing, cannot be read or has no images; what is right of an image
                that is missing, or none.
            ConfigError: Pillow is not installed.
        """
        require_pillow()
        self._read()

    def check_labels(self, labels: Callable[[str], Mapping[Any, Any]]) -> None:
        """Check the classes of tasks with heads of their own.

        Args:
            labels: ``id2label`` of a source by its name.

        Raises:
            FitnessError: a class that the head does not have.
        """
        for term in self._terms:
            if term.head:
                self._learn_classes(term, labels(term.head))

    def memory(self, model: ModelOutline) -> list[MemoryPart]:
        """What processed images take beside a model's weights; `check` comes before."""
        from fitness._images.pixels import load_processor, nbytes_of

        folder = self._processor or str(getattr(model.config, "name_or_path", "") or "")
        try:
            count = sum(self.items().values())
            nbytes = min(nbytes_of(count, load_processor(folder)), self._cache_size)
        except FitnessError:  # said where the model is checked
            return []
        return [MemoryPart("images", nbytes, f"{count:,} images ({size_text(self._cache_size)} at most)", "cache_size")]

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those that tasks name, ``score`` for those that name none; all to be maximised."""
        return tuple(Objective(name, "maximize") for name in objective_weights(self._terms))

    def items(self) -> dict[str, int]:
        """How many images each task has; `check` comes before."""
        return {name: len(source.items) for name, source in self._read().items()}

    def work(self) -> dict[str, int]:
        """What a candidate asks of a model: ``documents`` and ``texts``, which are images."""
        count = sum(self.items().values())
        return {"documents": count, "texts": count, "written": 0}

    def shares(self) -> list[MetricShare]:
        """What every metric counts in the objectives."""
        return shares_of(self._terms)

    def run(self, model: LoadedModel, part: Part | None = None) -> Scores:
        """Score a model with the head and the batch-norm statistics that it has.

        Args:
            part: places of images by task, some of every one; in batches of their own, equal to rounding.

        Raises:
            FitnessError: outputs that are not finite, naming the image; classes that the head does not have; a part
                that is none.
        """
        return self.run_switched(lambda _: model, part)

    @abstractmethod
    def run_switched(self, switch: Callable[[str], LoadedModel], part: Part | None = None) -> Scores:
        """`run`, with the model that ``switch(source)`` gives for the tasks of each head."""

    def switches(self) -> list[tuple[str, str | None]]:
        """Of each task, by its name, the source whose head scores it."""
        return [(term.name, term.head or None) for term in self._terms]

    def batch_norms(self, model: LoadedModel) -> Mapping[str, torch.Tensor]:
        """Statistics of the model's batch norms on images of this fitness, by buffer; the model stays as it is.

        Raises:
            FitnessError: statistics that are not finite.
        """
        found: Mapping[str, torch.Tensor] = self._ready().images.batch_norms(model)
        return found

    def batch_norm_pixels(self) -> tuple[Any, ...]:
        """The processed images that these statistics are of, in batches; none where they are left as merged."""
        found: tuple[Any, ...] = self._ready().images.statistics
        return found

    def documents(self) -> list[tuple[str, str]]:
        """For each image the hashes of its bytes with what is right, and of its bytes; batch norms' come last."""
        found = [tuple(document) for source in self._read().values() for document in source.documents]
        others = [hashlib.sha256(item.read()).hexdigest() for item in self._others]
        return [*((asked, content) for asked, content in found), *((text, text) for text in others)]

    @abstractmethod
    def _find(self, term: Any, key: str) -> Source:
        """The images of a task; `key` names it."""

    @abstractmethod
    def _learn_classes(self, term: Any, id2label: Mapping[Any, Any]) -> object:
        """Find out what is right of a task's images by the classes of a head."""

    def _read(self) -> Mapping[str, Any]:
        """The images of every task, found once."""
        if self._sources is None:
            found = {term.name: self._find(term, f"tasks[{place}]") for place, term in enumerate(self._terms)}
            if self._batch_norm is not None and self._batch_norm.folder:
                self._others = read_folder(self._batch_norm.folder, "batch_norm.folder")
                for item in self._others:
                    require_whole(item.read(), item.where)
            self._sources = found
        return self._sources

    def _how(self) -> How:
        from fitness._images.ready import How

        return How(self._batch_size, self._cache_size, self._cache, self._processor, self._other, self._batch_norm)

    def _ready(self) -> Any:
        """What `prepare` made; `FitnessError` before."""
        if self._prepared is None:
            raise FitnessError("the fitness has no items yet", "prepare(model) comes first")
        return self._prepared

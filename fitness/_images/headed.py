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
from fitness._classification.terms import CountedTerm, objective_weights, shares_of
from fitness._documents import Document
from fitness._images.sources import ImageItem

if TYPE_CHECKING:
    import torch

    from evomerge.models.loaded import LoadedModel


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

    _terms: Sequence[HeadedTerm]
    _others: Sequence[ImageItem]
    _prepared: Any = None

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
        found: Mapping[str, torch.Tensor] = self._ready().batch_norms(model)
        return found

    def documents(self) -> list[tuple[str, str]]:
        """For each image the hashes of its bytes with what is right, and of its bytes; batch norms' come last."""
        found = [tuple(document) for source in self._read().values() for document in source.documents]
        others = [hashlib.sha256(item.read()).hexdigest() for item in self._others]
        return [*((asked, content) for asked, content in found), *((text, text) for text in others)]

    @abstractmethod
    def _read(self) -> Mapping[str, Source]:
        """The images of every task, found once."""

    def _ready(self) -> Any:
        """What `prepare` made; `FitnessError` before."""
        if self._prepared is None:
            raise FitnessError("the fitness has no items yet", "prepare(model) comes first")
        return self._prepared

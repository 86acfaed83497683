"""What fitnesses of images make once, whatever models tell of them: pixels, and those of batch-norm statistics."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class How:
    """What holds for all tasks.

    Attributes:
        batch_size: images of a forward.
        budget: bytes of processed images that are kept in memory.
        cache: folder for more; empty for a temporary one.
        processor: folder of the image processor; empty for the model's.
        other: model that has what the pool's may lack, such as a text tower or a mask decoder; empty for none.
        batch_norm: ``None`` where statistics stay as they are merged.
    """

    batch_size: int
    budget: int
    cache: str
    processor: str
    other: str
    batch_norm: BatchNormTerm | None


@dataclass(frozen=True)
class Processed:
    """The images of all tasks as a model reads them.

    Attributes:
        pixels: by task.
        processor: that made them.
        statistics: pixels that batch-norm statistics are of, in batches; empty where none are to be computed.
    """

    pixels: Mapping[str, Pixels]
    processor: Any
    statistics: tuple[Pixels, ...]

    def batch_norms(self, model: LoadedModel) -> dict[str, torch.Tensor]:
        """Statistics of the model's batch norms, by buffer; none where none are to be computed."""
        return recomputed(model.module, [given(model, own) for own in self.statistics]) if self.statistics else {}

    def text(self, how: How, dtype: torch.dtype) -> dict[str, Any]:
        """What a fingerprint has of all this, but the pixels of tasks."""
        return {
            "versions": {name: importlib.metadata.version(name) for name in ("transformers", "torch", "pillow")},
            "processor": settings_of(self.processor),
            "batch_size": how.batch_size,
            "dtype": str(dtype),
            "batch_norm": digest_of(self.statistics) if self.statistics else "",
        }


def require_module(model: LoadedModel) -> None:
    """Raise `FitnessError` for a model that an engine holds."""
    if model.module is None:
        raise FitnessError("the model is held by an engine", "evaluator.engine=transformers")


def process(
    model: LoadedModel, tasks: Mapping[str, Sequence[ImageItem]], others: Sequence[ImageItem], how: How
) -> Processed:
    """Decode and process images for models like this one.

    Args:
        model: one of the pool's, or merged of them.
        tasks: by name their images.
        others: that batch-norm statistics are of, instead of the tasks'.
        how: what holds for all tasks.

    Raises:
        FitnessError: no image processor, or an image that cannot be decoded.
    """
    processor = load_processor(how.processor or model.name_or_path)
    budget, pixels = how.budget, dict[str, Pixels]()
    for name, items in tasks.items():
        pixels[name] = own = processed(items, processor, budget, how.cache)
        budget -= own.nbytes if not isinstance(own, np.memmap) else 0
    statistics: tuple[Pixels, ...] = ()
    if how.batch_norm is not None and batch_norms_of(model.module):
        statistics = statistics_of(how.batch_norm, pixels, others, processor)
    return Processed(pixels, processor, statistics)


def given(model: LoadedModel, pixels: Pixels) -> torch.Tensor:
    """Pixels as the model is given them."""
    return torch.from_numpy(np.array(pixels)).to(model.device, model.dtype)


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """A module in evaluation mode; as it was afterwards."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)

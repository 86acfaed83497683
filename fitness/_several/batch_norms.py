"""Batch-norm statistics of several fitnesses of images: of the images of all, mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from evomerge.models.loaded import LoadedModel
    from fitness._images.pixels import Pixels


def require_pixels(parts: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where several parts compute statistics and one does not say of which images."""
    able = [name for name, part in parts.items() if hasattr(part, "batch_norms")]
    lacking = [name for name in able if not hasattr(parts[name], "batch_norm_pixels")]
    if len(able) > 1 and lacking:
        what = f"parts {' and '.join(able)} all compute batch-norm statistics, and {lacking[0]} does not say of what"
        raise ConfigError(what, "one that does, or fitnesses with batch_norm_pixels", "leave the others' images out")


class Statistics:
    """What gives a model the statistics of the images of several prepared fitnesses.

    Args:
        parts: with ``batch_norms``, and ``batch_norm_pixels`` where there are two or more.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts, self._batches = list(parts), list[Any]()
        if len(self._parts) < 2:
            return
        self._parts = [part for part in self._parts if part.batch_norm_pixels()]
        if len(self._parts) > 1:
            self._batches = _mixed([part.batch_norm_pixels() for part in self._parts])

    def of(self, model: LoadedModel) -> Mapping[str, torch.Tensor]:
        """By the names of the module's buffers: of one part its own, of several those that all their images give.

        Args:
            model: in which merged weights are in place.

        Raises:
            FitnessError: statistics that are not finite.
        """
        if len(self._parts) < 2:
            return self._parts[0].batch_norms(model) if self._parts else {}
        from fitness._images.batch_norm import recomputed
        from fitness._images.ready import given

        return recomputed(model.module, [given(model, own) for own in self._batches])


def mixed_text(parts: Sequence[Any]) -> str:
    """What a fingerprint has of statistics of several prepared fitnesses' images; empty of one's own."""
    return " batch_norms=mixed" if sum(bool(own.batch_norm_pixels()) for own in parts if len(parts) > 1) > 1 else ""


def _mixed(parts: Sequence[Sequence[Pixels]]) -> list[Pixels]:
    """Batches of images of all parts, mixed; as they are where they differ in size."""
    batches = [own for part in parts for own in part]
    if len({own.shape[1:] for own in batches}) > 1:
        return batches
    pixels = np.concatenate(batches)
    order = np.random.default_rng(0).permutation(len(pixels))
    return [pixels[own] for own in np.array_split(order, len(batches))]

"""What was learnt, kept as methods read it: as statistics of the models, a file for every slice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evomerge.calibration.files import held, save
from evomerge.calibration.learning.factors import ColumnFactors, MaskFactors
from evomerge.calibration.learning.tensors import Target, Tensors
from evomerge.models.statistics import FORMAT, INDEX, ModelStatistics
from evomerge.recipes.slices import SliceId
from evomerge.utils.files import write_text_atomic


@dataclass(frozen=True)
class Counts:
    """Of what something was learnt on: items and tokens."""

    items: int
    tokens: int


def write_mask(tensors: Tensors, factors: MaskFactors, into: ModelStatistics, counts: Counts) -> None:
    """Keep the mask that all models share, flat, under the name that each of them has for a tensor.

    Raises:
        OutputError: the folder cannot be written.
    """
    targets = [target for target in tensors.targets if target.name in factors.values]
    found = {target.name: factors.mask(target.name).reshape(-1).cpu().contiguous() for target in targets}
    _write(tensors, targets, found, dict.fromkeys(found, 0), into, counts, tensors.sources)


def write_columns(tensors: Tensors, factors: ColumnFactors, into: Sequence[ModelStatistics], counts: Counts) -> None:
    """Keep each model's factors of columns.

    Args:
        into: of the sources, in order.

    Raises:
        OutputError: a folder cannot be written.
    """
    targets = [target for target in tensors.targets if target.name in factors.values]
    for at, (model, own) in enumerate(zip(tensors.sources, into, strict=True)):
        found = {name: value.detach()[at].float().cpu().contiguous() for name, value in factors.values.items()}
        _write(tensors, targets, found, factors.axis, own, counts, (model,))


def _write(
    tensors: Tensors,
    targets: Sequence[Target],
    found: dict[str, torch.Tensor],
    axis: dict[str, int],
    into: ModelStatistics,
    counts: Counts,
    models: Sequence[str],
) -> None:
    if into.complete:
        return
    entries = {}
    with held(into.folder):
        for slice_ in dict.fromkeys(target.slice for target in targets):
            own = [target for target in targets if target.slice == slice_]
            file = _file(into.folder, slice_)
            save(file, {target.name: found[target.name] for target in own}, {})
            for target in own:
                entry = {
                    "file": file.name,
                    "entry": target.name,
                    "axis": axis[target.name],
                    "shape": list(found[target.name].shape),
                }
                entries.update({tensors.pool.stored[model][target.name]: entry for model in models})
        index = {
            "evomerge_statistics": FORMAT,
            "kind": into.kind,
            "items": counts.items,
            "tokens": counts.tokens,
            "mean": 1.0,
            "skipped": {},
            "tensors": entries,
        }
        write_text_atomic(into.folder / INDEX, json.dumps(index, indent=1) + "\n")


def _file(folder: Path, slice_: SliceId) -> Path:
    return folder / f"{slice_}.safetensors"

"""Dense layers of sentence-transformers in a pool: whether all models have the same, and how others are merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.errors import PoolError
from evomerge.models.architecture.dense_layers import DENSE, FILE, places
from evomerge.models.checkpoints.headers import TensorInfo, read_header
from evomerge.models.checkpoints.reader import Checkpoint
from evomerge.models.checkpoints.sentence_modules import MODULES, check_sentence_modules
from evomerge.models.sentence_encoder import Dense, read_encoder
from evomerge.recipes.dense import KEPT, MERGED

SAME = "same"
"""In place of a `pool.dense`: models whose layers differ are refused."""


def settle_dense(
    setting: str, reference: str, checkpoints: dict[str, Checkpoint], configs: Mapping[str, Any]
) -> str | None:
    """Find out what becomes of the models' dense layers, and make those that are merged part of the models.

    Args:
        setting: ``auto`` (merged where they differ), `MERGED`, `KEPT` or `SAME`.
        reference: the model that gives the configuration.
        checkpoints: by model; of layers that are merged, those with their tensors take their place.
        configs: transformers configurations by model, which are then told of the layers.

    Returns:
        `MERGED`, `KEPT`, or ``None`` where all models have the same, or none has any.

    Raises:
        PoolError: layers that differ in all but their weights, or that a model lacks, or whose weights are no
            safetensors; other modules that differ; nothing to merge, with `MERGED`.
    """
    folders = {name: own.folder for name, own in checkpoints.items()}
    if not any((folder / MODULES).is_file() for folder in folders.values()):
        if setting == MERGED:
            raise _nothing_to_merge()
        return None
    check_sentence_modules(folders, but_dense=setting != SAME)
    if setting == SAME or (setting != MERGED and _are_same(folders)):
        return None
    if setting == KEPT:
        if not (folders[reference] / MODULES).is_file():
            raise PoolError(
                f"the models' dense layers differ, and model {reference!r}, which gives the configuration, has none",
                "the layers of that model are kept with pool.dense=kept",
                "put sentence-transformers' files into its folder, or set pool.base=null",
            )
        return KEPT
    layers = _layers(folders, reference)
    if not layers and setting == MERGED:
        raise _nothing_to_merge()
    if not layers:
        return None
    for name, own in checkpoints.items():
        checkpoints[name] = own.with_tensors(_tensors(name, folders[name], layers))
        setattr(configs[name], DENSE, [asdict(layer) for layer in layers])
    return MERGED


def _nothing_to_merge() -> PoolError:
    return PoolError(
        "pool.dense is 'merged', and no model has dense layers behind its embedding",
        "models with modules.json and a module Dense",
        "set pool.dense=auto",
    )


def _are_same(folders: Mapping[str, Path]) -> bool:
    try:
        check_sentence_modules(folders)
    except PoolError:
        return False
    return True


def _layers(folders: Mapping[str, Path], reference: str) -> tuple[Dense, ...]:
    """The dense layers that all models have."""
    found = {name: read_encoder(folder) for name, folder in folders.items()}
    wanted = found[reference] or next(own for own in found.values() if own is not None)
    for name, own in found.items():
        if own is None or own.dense != wanted.dense:
            raise PoolError(
                f"the models' dense layers differ, and those of model {name!r} are "
                f"{', '.join(layer.place for layer in own.dense) or 'none' if own is not None else 'none'}",
                f"as many, of the same widths: {', '.join(f'{o.place} {o.inputs}x{o.outputs}' for o in wanted.dense)}",
                "set pool.dense=kept for those of the model that gives the configuration",
            )
    return wanted.dense


def _tensors(name: str, folder: Path, layers: tuple[Dense, ...]) -> dict[str, TensorInfo]:
    """Where the tensors of a model's layers lie, by their names in the module."""
    found = {}
    for place, (layer, tensor) in places(layers).items():
        path = folder / layer.place / FILE
        info = read_header(path).get(tensor) if path.is_file() else None
        if info is None or info.shape != layer.shapes[tensor] or not info.is_float:
            held = "none" if info is None else f"{info.dtype} of {info.shape}"
            raise PoolError(
                f"model {name!r}: {path} has {held} for {tensor}",
                f"floats of {layer.shapes[tensor]}, as its config.json says",
                "download it again",
            )
        found[place] = info
    return found

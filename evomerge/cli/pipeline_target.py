"""Pipelines that draw images as what is scored: folders of them, networks alone, and single files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import ConfigError

if TYPE_CHECKING:
    from evomerge.models.pool import Pool

KEYS = ("pool.network", "pool.others")
"""What a command line may say of such a model."""


def draws(target: str) -> bool:
    """Whether what lies at a place is a pipeline, a network of one, or a single file."""
    from evomerge.models.pipelines.folders import NETWORKS, SINGLE_FILE, is_pipeline

    path = Path(target.partition("+")[0] if not Path(target).exists() else target)
    if path.is_file():
        return path.suffix == SINGLE_FILE
    return is_pipeline(path) or any((path / part / "config.json").is_file() for part in NETWORKS)


def open_drawing(target: str, settings: Any, given: Collection[str], root: str | None, dtype: str) -> Pool | None:
    """Open what is scored where it is a pipeline by what lies there, or by the command line.

    Args:
        target: MODEL.
        settings: the node ``pool`` of the configuration.
        given: keys of the command line; without those of `KEYS`, and without a pool, nothing but the place says so.
        root: the folder that the target is looked up in first.
        dtype: of the network; ``auto`` for its own.

    Raises:
        ConfigError, PoolError: it cannot be opened.
    """
    from evomerge.models.pipelines.folders import AUTO

    said = settings.get("network") if {"pool", *KEYS} & set(given) else None
    if said is None and not draws(target):
        return None
    from evomerge.models.pipelines.opening import open_pipelines

    others = settings.get("others") if "pool.others" in given else None
    return open_pipelines({"model": target}, None, root, dtype, network=said or AUTO, others=others)


def refuse_keys(given: Collection[str], target: str) -> None:
    """`ConfigError` for keys of a pipeline beside a run or a recipe, which says them itself."""
    for key in KEYS:
        if key in given:
            raise ConfigError(f"{key} was given with {target}", "a run and a recipe say it themselves", "leave it out")

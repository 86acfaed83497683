"""The checkpoints of one training run's folder: found, put in order, thinned out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, EvomergeWarning, PoolError, nearest
from evomerge.models.checkpoints.headers import read_json
from evomerge.models.checkpoints.weight_files import read_headers
from evomerge.models.pipelines.checkpoint import read_network_headers
from evomerge.models.pipelines.folders import NETWORKS

KEY = "pool.checkpoints"

_STEP = re.compile(r"(?:checkpoint|step|global_step)[-_]?(\d{1,15})")
_LISTED = 3


@dataclass(frozen=True)
class SeriesSettings:
    """Which checkpoints of a training run are taken.

    Attributes:
        folder: of the run: Trainer's ``checkpoint-100``, ``checkpoint-200`` and so on lie in it.
        first: the step that the first one is at or after; ``None`` for the first there is.
        last: the step that the last one is at or before; likewise.
        every: take every so manieth of them, counted back from the last, which stays.
        most: take so many at most, evenly spread from the first to the last, both of which stay.
    """

    folder: str
    first: int | None = None
    last: int | None = None
    every: int = 1
    most: int | None = None

    @classmethod
    def of(cls, given: Any) -> SeriesSettings:
        """The settings that a configuration gives: a folder, or a mapping.

        Raises:
            ConfigError: names the key, what is allowed, and what may be meant.
        """
        content = {"folder": given} if isinstance(given, str) else given
        known = [field.name for field in fields(cls)]
        if not isinstance(content, Mapping):
            raise ConfigError(f"{KEY} is {given!r}", f"a folder, or a mapping of {', '.join(known)}")
        for name in content:
            if name not in known:
                raise ConfigError(f"{KEY} has no key {name!r}", nearest(str(name), known))
        own: dict[str, Any] = {str(name): value for name, value in content.items() if value is not None}
        folder = own.get("folder")
        if not isinstance(folder, str) or not folder:
            raise ConfigError(
                f"{KEY}.folder is {folder!r}", "the folder of a training run, with checkpoint-100 and so on"
            )
        for name, least in (("first", 0), ("last", 0), ("every", 1), ("most", 2)):
            value = own.get(name, least)
            if type(value) is not int or value < least:
                raise ConfigError(f"{KEY}.{name} is {value!r}", f"a whole number from {least}, or null")
        found = cls(**own)
        if found.first is not None and found.last is not None and found.first > found.last:
            raise ConfigError(f"{KEY} goes from step {found.first} to {found.last}", "first at most as large as last")
        return found


def series_models(
    settings: SeriesSettings, root: str | Path | None = None, adapted: str | None = None
) -> dict[str, str]:
    """The checkpoints of a training run by name (``step-100``), in the order of their steps: absolute folders.

    A folder counts when it is called ``checkpoint-N``, ``step-N`` or ``global_step-N`` (also with ``_`` or nothing
    for the dash) and is finished: with its configuration and all of its weights, or an adapter's. Others called so are
    warned of and left out: a trainer may be writing them, or have been ended while it did.

    Args:
        settings: which.
        root: folder that a relative folder is looked up in first, before the current one.
        adapted: the location of the model that adapters are folded into; ``None`` where none is known.

    Raises:
        PoolError: there is no such folder, fewer than two checkpoints are left, two are of one step, or they are
            adapters and `adapted` is ``None``.
    """
    folder = _place(settings.folder, root)
    steps: dict[int, Path] = {}
    unfinished: list[str] = []
    for entry in sorted(folder.iterdir()):
        match = _STEP.fullmatch(entry.name)
        if match is None or not entry.is_dir():
            continue
        problem = _unfinished(entry)
        if problem:
            unfinished.append(f"{entry.name} ({problem})")
        elif (step := int(match[1])) in steps:
            twice = f"{folder} has {steps[step].name} and {entry.name}"
            raise PoolError(twice, "one checkpoint of a step", "move one away")
        else:
            steps[step] = entry
    cut = f" and {len(unfinished) - _LISTED} more" if len(unfinished) > _LISTED else ""
    left_out = f"{'; '.join(unfinished[:_LISTED])}{cut}"
    if not steps:
        raise PoolError(
            f"{KEY}: {folder} holds no finished checkpoint{f': {left_out}' if unfinished else ''}",
            "folders called checkpoint-100, checkpoint-200 and so on, with config.json and safetensors each",
            "name the output folder of the training",
        )
    if unfinished:
        warnings.warn(f"{folder}: unfinished checkpoints are left out: {left_out}", EvomergeWarning, stacklevel=2)
    kept = thinned(sorted(steps), settings)
    if len(kept) < 2:
        raise PoolError(
            f"{KEY} takes {len(kept)} of {len(steps)} checkpoints in {folder}, of steps {min(steps)} to {max(steps)}",
            "two or more",
            "change first, last or every",
        )
    models = {}
    for step in kept:
        adapter = not (steps[step] / "config.json").is_file() and _network(steps[step]) is None
        if adapter and adapted is None:
            raise PoolError(
                f"{KEY}: {steps[step]} holds an adapter, not a model",
                "adapters are folded into the model that they were trained on",
                "name that model in pool.models, and its name in pool.base",
            )
        models[f"step-{step}"] = f"{adapted}+{steps[step]}" if adapter else str(steps[step])
    return models


def thinned(steps: list[int], settings: SeriesSettings) -> list[int]:
    """The steps, in order, that settings take of all.

    >>> thinned([100, 200, 300, 400, 500, 600], SeriesSettings("out", first=200, every=2))
    [200, 400, 600]
    >>> thinned([100, 200, 300, 400, 500, 600], SeriesSettings("out", most=3))
    [100, 300, 600]
    """
    low = settings.first if settings.first is not None else 0
    kept = [step for step in steps if step >= low and (settings.last is None or step <= settings.last)]
    kept = kept[::-1][:: settings.every][::-1]
    most = settings.most
    if most is None or len(kept) <= most:
        return kept
    return [kept[number * (len(kept) - 1) // (most - 1)] for number in range(most)]


def _place(given: str, root: str | Path | None) -> Path:
    path = Path(given).expanduser()
    roots = [Path(root).expanduser()] if root is not None and not path.is_absolute() else []
    tried = [base / path for base in [*roots, Path.cwd()]]
    for folder in tried:
        if folder.is_dir():
            return folder.resolve()
    parent = tried[0].parent
    beside = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    places = ", ".join(dict.fromkeys(map(str, tried)))
    raise PoolError(
        f"{KEY}: there is no folder {given} (looked at {places})",
        nearest(path.name, beside) if beside else "the folder of a training run",
    )


def _network(folder: Path) -> str | None:
    """The network of a pipeline, where a checkpoint is one."""
    return next((name for name in NETWORKS if (folder / name / "config.json").is_file()), None)


def _unfinished(folder: Path) -> str:
    """Why a checkpoint cannot be read, in a few words; empty for a finished one."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file() and not (folder / "config.json").exists():
        return "" if (folder / "adapter_model.safetensors").is_file() else "it lacks adapter_model.safetensors"
    network = _network(folder)
    try:
        if network is not None and not (folder / "config.json").exists():
            read_network_headers(folder / network)
            return ""
        read_headers(folder, read_json(folder / "config.json", "the model's configuration"))
    except PoolError as error:
        return error.given
    return ""

"""What a tracker is, and how one is chosen in a configuration."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from evomerge.config.construct import TARGET, build, to_builtin
from evomerge.errors import ConfigError, nearest

Ending = Literal["finished", "interrupted", "failed"]

TRACKERS = {
    "tensorboard": "evomerge.trackers.tensorboard.TensorBoard",
    "mlflow": "evomerge.trackers.mlflow.Mlflow",
    "wandb": "evomerge.trackers.wandb.WeightsAndBiases",
}
"""Classes by the name that `trackers` of a configuration gives."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        folder: the run folder.
        name: of the run.
        config: the whole configuration as plain values.
        before: what `Tracker.begin` returned when the run began, of one that goes on.
    """

    folder: Path
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    before: str | None = None


class Tracker(Protocol):
    """Takes in numbers. All methods are called by one thread, which is not the one that searches.

    What it raises ends its part in the run, and nothing else. Constructed from its configuration alone, without
    importing what it wraps: `require` says whether that is there.
    """

    def begin(self, run: TrackedRun) -> str | None:
        """Start, or go on; returns what a later session needs to go on."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take in numbers by name. The step counts the candidates told, from 1; what comes before has step 0."""

    def end(self, ending: Ending) -> None:
        """No more will come."""


def require(package: str, extra: str) -> None:
    """`ConfigError` unless a package is installed; it is not imported."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"trackers has {extra}, and {package} is not installed",
            "a package that is",
            f"install it with: pip install 'evomerge[{extra}]', or leave the tracker out",
        )


def trackers_from_config(nodes: Any) -> list[tuple[str, Tracker]]:
    """Build the trackers of a configuration, with the names that the log and their files have.

    Args:
        nodes: a list of names, of mappings with `name` and options, or of mappings with `_target_`.

    Raises:
        ConfigError: a name that is not known, an option that a tracker has not, a package that is not installed.
    """
    entries = to_builtin(nodes)
    if entries is None:
        return []
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise ConfigError(f"trackers is {entries!r}", "a list", f"trackers=[{', '.join(TRACKERS)}] or some of them")
    found: dict[str, Tracker] = {}
    for place, entry in enumerate(entries):
        key = f"trackers.{place}"
        options = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(options, Mapping) or not ({"name", TARGET} & options.keys()):
            raise ConfigError(f"{key} is {entry!r}", "a name, or a mapping with a name and options", _known())
        name = str(options.get("name", str(options.get(TARGET)).rpartition(".")[2]))
        if TARGET not in options and name not in TRACKERS:
            raise ConfigError(f"{key} is {name!r}", nearest(name, TRACKERS), _known())
        if name in found:
            raise ConfigError(f"{key} is {name!r}, which is there already", "each tracker once")
        rest = {option: value for option, value in options.items() if option != "name"}
        found[name] = build({TARGET: TRACKERS.get(name), **rest}, key)
    return list(found.items())


def _known() -> str:
    return f"known: {', '.join(TRACKERS)}"

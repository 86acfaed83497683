"""Which estimator a user asks for, parsed and checked. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from evomerge.errors import ConfigError, FitnessError, nearest
from evomerge.objectives import MetricShare, Objective
from evomerge.protocols import Estimator
from fitness.estimators.anchor_names import Anchors

if TYPE_CHECKING:
    from evomerge.candidate import Items

_IRT = ("dimensions", "anchors", "from_run")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "mean": (),
    "p_irt": _IRT,
    "gp_irt": (*_IRT, "blend"),
    "mp_irt": (*_IRT, "endpoints"),
    "gmp_irt": (*_IRT, "blend", "endpoints"),
}
_ALL = tuple(dict.fromkeys(key for keys in _KEYS.values() for key in keys))
_VARIANCES = "variances"
_MOST_DIMENSIONS = 16


@dataclass(frozen=True)
class EstimatorSettings:
    """A checked choice of an estimator.

    Attributes:
        name: ``mean``, ``p_irt``, ``gp_irt``, ``mp_irt`` or ``gmp_irt``.
        arguments: of `ItemResponse`.
        from_run: run folders whose models it begins with.
    """

    name: str = "mean"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    from_run: tuple[str, ...] = ()

    def check_files(self) -> None:
        """Raise `FitnessError` for a folder of `from_run` that is no run's."""
        for folder in self.from_run:
            if not (Path(folder) / "items").is_dir():
                raise FitnessError(f"estimator.from_run is {folder!r}, no run folder", "one with a folder 'items'")

    def build(
        self, shares: Sequence[MetricShare], objectives: Sequence[Objective], counts: Mapping[str, int]
    ) -> Estimator:
        """Build the estimator.

        Args:
            shares: what the mean of each metric's items counts.
            objectives: to estimate.
            counts: documents of each task.

        Raises:
            FitnessError: a folder of `from_run` that is no run's, or whose models were scored on other items.
        """
        if self.name == "mean":
            from fitness.estimators.stratified_mean import StratifiedMean

            return StratifiedMean(shares, objectives)
        from fitness.estimators.irt import ItemResponse

        self.check_files()
        earlier = [items for folder in self.from_run for items in earlier_items(folder, shares, counts)]
        merged = self.name in ("mp_irt", "gmp_irt")
        return ItemResponse(shares, objectives, merged=merged, earlier=earlier, **self.arguments)


def parse_estimator(value: Any) -> EstimatorSettings:
    """What a user's ``estimator`` describes: a name, or a mapping with ``name`` and arguments; ``None`` is ``mean``.

    Raises:
        ConfigError: an unknown name or argument, or a value out of its range, naming the key.
    """
    given: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {"name": "mean" if value is None else value}
    if isinstance(value, Mapping) and "name" not in given:
        odd = next((str(key) for key in given if key not in _ALL), "")
        what = f"estimator has no key {odd!r}" if odd else "estimator has no name"
        raise ConfigError(what, nearest(odd, ["name", *_ALL]) if odd else f"name: {', '.join(_KEYS)}")
    name = given.pop("name", None)
    if not isinstance(name, str) or name not in _KEYS:
        key = "estimator.name" if isinstance(value, Mapping) else "estimator"
        raise ConfigError(f"{key} is {name!r}", nearest(str(name), _KEYS))
    for key in given:
        if key not in _KEYS[name]:
            of_others = any(key in keys for keys in _KEYS.values())
            allowed = nearest(str(key), _KEYS[name]) if _KEYS[name] else "mean has no arguments"
            do = f"{key} is an argument of {_who(str(key))}" if of_others else ""
            raise ConfigError(f"estimator has no key {key!r} with name {name}", allowed, do)
    arguments = {key: each for key, each in given.items() if key not in ("from_run", "blend")}
    _check_whole(arguments.get("dimensions", 1), "dimensions", 1, _MOST_DIMENSIONS)
    if arguments.get("endpoints") is not None:
        _check_whole(arguments["endpoints"], "endpoints", 2, 16)
    _check_anchors(arguments.get("anchors", "none"))
    if "blend" in _KEYS[name]:
        arguments["blend"] = _blend(given.get("blend", _VARIANCES))
    return EstimatorSettings(name, arguments, _folders(given.get("from_run")))


def earlier_items(folder: str, shares: Sequence[MetricShare], counts: Mapping[str, int]) -> list[Items]:
    """The items of the models that a run scored, the latest 256 at most, by number.

    Raises:
        FitnessError: there are none, or they are other items.
        LedgerError: a file cannot be read.
    """
    from evomerge.run.items import read_items
    from fitness.estimators.irt import MOST_MODELS

    files = (Path(folder) / "items").glob("search-*.safetensors")
    numbers = sorted(int(digits) for file in files if (digits := file.stem.removeprefix("search-")).isdigit())
    found = [read_items(Path(folder), number) for number in numbers[-MOST_MODELS:]]
    if not found:
        raise FitnessError(f"estimator.from_run: {folder} has no scored models", "a run with per-item scores")
    for metric in dict.fromkeys(share.metric for share in shares):
        documents = counts[metric.rpartition("/")[0]]
        for number, items in zip(numbers[-MOST_MODELS:], found, strict=True):
            if metric not in items:
                raise FitnessError(
                    f"estimator.from_run: candidate {number} of {folder} has no {metric}", nearest(metric, list(items))
                )
            if len(items[metric]) != documents:
                raise FitnessError(
                    f"estimator.from_run: {folder} scored {len(items[metric])} items of {metric}",
                    f"the same items as this search, which has {documents}",
                )
    return list(found)


def _who(key: str) -> str:
    return ", ".join(name for name, keys in _KEYS.items() if key in keys)


def _check_whole(value: Any, key: str, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"estimator.{key} is {value!r}", f"a whole number from {least} to {most}")


def _check_anchors(value: Any) -> None:
    if not isinstance(value, str) or value not in get_args(Anchors):
        raise ConfigError(f"estimator.anchors is {value!r}", nearest(str(value), get_args(Anchors)))


def _blend(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != _VARIANCES and not (number and 0 <= value <= 1):
        raise ConfigError(f"estimator.blend is {value!r}", f"{_VARIANCES}, or the share of the mean, from 0 to 1")
    return float(value) if number else value


def _folders(value: Any) -> tuple[str, ...]:
    folders = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(folders, Sequence) or not all(isinstance(folder, str) and folder for folder in folders):
        raise ConfigError(f"estimator.from_run is {value!r}", "a run folder, or a list of them")
    return tuple(folders)

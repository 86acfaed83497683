"""What a protocol is: the node ``protocol`` of a configuration, read and checked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.config.construct import check_arguments, to_builtin
from evomerge.config.schema import Config
from evomerge.errors import ConfigError, nearest
from evomerge.utils.installation import conf_dir

AVERAGE = "average"
"""The column of means over tasks, in published tables too."""
STAND_IN = "_stand_in"
_UNITS = {"percent": 100.0, "share": 1.0}
_MOST_GRID = 1000
_QUICK = 20
"""Candidates of a search at most, of models that have hardly learnt anything."""


@dataclass(frozen=True)
class Baseline:
    """A method as its paper has it.

    Attributes:
        name: of its row.
        method: that is merged with.
        parameters: untuned, by name; ``weight: mean`` is one over the number of sources.
        grid: by parameter the values that its paper tunes; empty where it tunes nothing.
        untuned: whether it is also scored with `parameters`; not where the grid is all that the paper has.
    """

    name: str
    method: str
    parameters: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]
    untuned: bool = True

    def members(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Every member of the grid by name, ``ties lambda=0.5``, with all parameters."""
        for values in itertools.product(*self.grid.values()) if self.grid else ():
            own = dict(zip(self.grid, values, strict=True))
            words = " ".join(f"{key}={value}" for key, value in own.items())
            yield f"{self.name} {words}", {**self.parameters, **own}


@dataclass(frozen=True)
class SearchEntry:
    """A search of a protocol.

    Attributes:
        name: of its row.
        words: overrides of the protocol's configuration.
        evaluations: candidates; ``None`` for as many as all grids have members.
        preferences: of a search of several objectives, weights by objective (``accuracy=0.8,length=0.2``), for each of
            which the front's recipe is a row.
    """

    name: str
    words: tuple[str, ...]
    evaluations: int | None
    preferences: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """A published table.

    Attributes:
        source: where it was read.
        scale: that shares are multiplied with to be in its unit.
        rows: by name of a row the numbers by column: tasks, or ``average``.
    """

    source: str
    scale: float
    rows: Mapping[str, Mapping[str, float]]


class Protocol:
    """A protocol.

    Args:
        title: in one line.
        about: what it shows, and how it differs from the source.
        sources: papers and pages.
        methods: by name ``{method, parameters, grid, untuned}``.
        searches: by name ``{words, evaluations, preferences}``.
        experts: task -> the source that was fine-tuned on it, which normalises; the best source by default.
        forgetting: tasks that the base can do and no source was tuned on; the loss is counted on these alone. Empty for
            all.
        leakage: what is known of overlaps between what is searched on and what is tested on.
        files: what writes files that the fitness reads, for who has not got them.
        published: ``{source, unit, rows}``: the table that ours stands beside; unit is ``percent`` or ``share``.
        stand_in: the maker of tiny models and items of the same shapes, of a ``NAME_stand_in``.
        quick: whether these are hardly trained, and searches are short.

    Raises:
        ConfigError: a key that there is not, or values out of bounds.
    """

    def __init__(
        self,
        *,
        title: str,
        about: str = "",
        sources: list[str] | None = None,
        methods: dict[str, Any] | None = None,
        searches: dict[str, Any] | None = None,
        experts: dict[str, str] | None = None,
        forgetting: list[str] | None = None,
        leakage: str = "",
        files: str = "",
        published: dict[str, Any] | None = None,
        stand_in: str | None = None,
        quick: bool = False,
    ) -> None:
        self.title, self.about, self.sources, self.leakage = title, about, tuple(sources or ()), leakage
        self.methods = [_baseline(name, entry) for name, entry in (methods or {}).items()]
        self.searches = [_search(name, entry) for name, entry in (searches or {}).items()]
        self.files = files
        self.experts, self.forgetting = dict(experts or {}), tuple(forgetting or ())
        self.published = _published(published)
        self.stand_in, self.quick = stand_in, quick
        self._check_names()

    @property
    def grid_members(self) -> dict[str, tuple[Baseline, Mapping[str, Any]]]:
        """Every member of every grid, by name."""
        return {name: (own, values) for own in self.methods for name, values in own.members()}

    def budget(self, search: SearchEntry) -> int:
        """Candidates of a search: its own number, or as many as all grids have members; of quick models a few.

        Raises:
            ConfigError: neither is there.
        """
        found = search.evaluations if search.evaluations is not None else len(self.grid_members)
        if found < 1:
            key = f"protocol.searches.{search.name}.evaluations"
            raise ConfigError(f"{key} is null, and no method has a grid", "a number, where there is no equal cost")
        return min(found, _QUICK) if self.quick else found

    def _check_names(self) -> None:
        names = [*(own.name for own in self.methods), *(own.name for own in self.searches)]
        for name in names:
            if not name.strip() or "/" in name or name.startswith(".") or names.count(name) > 1:
                raise ConfigError(f"protocol has a row {name!r}", "names of rows differ, and have no / in them")
        if not names:
            raise ConfigError("protocol has neither methods nor searches", "something to compare")
        if (most := len(self.grid_members)) > _MOST_GRID:
            raise ConfigError(f"the grids of protocol.methods have {most:,} members", f"{_MOST_GRID:,} at most")


def protocol_of(config: Config) -> Protocol:
    """The protocol of a configuration.

    Raises:
        ConfigError: it has none, or one with a key that there is not.
    """
    node = to_builtin(config.protocol)
    if not isinstance(node, Mapping):
        raise ConfigError(f"protocol is {node!r}", f"one of {', '.join(names())}", "`evomerge protocol NAME`")
    return Protocol(**check_arguments(Protocol, {str(key): value for key, value in node.items()}, "protocol"))


def names(own: Path | None = None) -> list[str]:
    """The protocols that there are, without their stand-ins; those of a folder of one's own options too."""
    folders = [Path(conf_dir()), *([own] if own is not None else [])]
    found = {path.stem for folder in folders for path in (folder / "protocol").glob("*.yaml")}
    return sorted(name for name in found if not name.endswith(STAND_IN))


def has_stand_in(name: str, own: Path | None = None) -> bool:
    """Whether a protocol has one."""
    folders = [Path(conf_dir()), *([own] if own is not None else [])]
    return any((folder / "protocol" / f"{name}{STAND_IN}.yaml").is_file() for folder in folders)


def require_name(name: str, *, stand_in: bool, own: Path | None = None) -> str:
    """The option of the group ``protocol`` for a name, or for its stand-in.

    Raises:
        ConfigError: there is no such protocol.
    """
    if name not in names(own):
        raise ConfigError(f"there is no protocol {name!r}", nearest(name, names(own)), "see `evomerge protocol --list`")
    if stand_in and not has_stand_in(name, own):
        raise ConfigError(f"the protocol {name} has no stand-in", "without --stand-in, on its own models")
    return name + STAND_IN * stand_in


def _entry(key: str, entry: Any, allowed: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{key} is {entry!r}", f"a mapping of {', '.join(allowed)}")
    for word in entry:
        if word not in allowed:
            raise ConfigError(f"{key} has no key {str(word)!r}", nearest(str(word), allowed))
    return entry


def _baseline(name: str, entry: Any) -> Baseline:
    key = f"protocol.methods.{name}"
    entry = _entry(key, entry, ("method", "parameters", "grid", "untuned"))
    if not isinstance(entry.get("method"), str):
        raise ConfigError(f"{key}.method is {entry.get('method')!r}", "a merge method", "see `evomerge methods`")
    given, grid, untuned = entry.get("parameters") or {}, entry.get("grid") or {}, entry.get("untuned", True)
    if not isinstance(given, Mapping) or not isinstance(grid, Mapping):
        raise ConfigError(
            f"{key} has parameters {given!r} and grid {grid!r}", "values, and lists of them, by parameter"
        )
    for parameter, values in grid.items():
        if not isinstance(values, list) or len(values) < 2 or len(set(map(repr, values))) < len(values):
            raise ConfigError(f"{key}.grid.{parameter} is {values!r}", "a list of two values or more, each once")
    if not isinstance(untuned, bool) or not (untuned or grid):
        raise ConfigError(f"{key}.untuned is {untuned!r}", "true, or false for a method with a grid")
    return Baseline(name, entry["method"], dict(given), dict(grid), untuned)


def _search(name: str, entry: Any) -> SearchEntry:
    key = f"protocol.searches.{name}"
    entry = _entry(key, entry, ("words", "evaluations", "preferences"))
    words, count, preferences = entry.get("words") or [], entry.get("evaluations"), entry.get("preferences") or []
    if not isinstance(words, list) or not all(isinstance(w, str) and ("=" in w or w[:1] == "~") for w in words):
        raise ConfigError(f"{key}.words is {words!r}", "a list of overrides: [search_space=by_layer, strategy=cma_es]")
    if count is not None and (type(count) is not int or count < 1):
        raise ConfigError(f"{key}.evaluations is {count!r}", "1 or more, or null for as many as the grids have members")
    if not isinstance(preferences, list) or not all(isinstance(own, str) for own in preferences):
        raise ConfigError(f"{key}.preferences is {preferences!r}", "a list of weights: ['accuracy=0.8,length=0.2']")
    return SearchEntry(name, tuple(words), count, tuple(preferences))


def _published(entry: Any) -> Published | None:
    if entry is None:
        return None
    key = "protocol.published"
    entry = _entry(key, entry, ("source", "unit", "rows"))
    unit, rows = entry.get("unit", "percent"), entry.get("rows") or {}
    if unit not in _UNITS:
        raise ConfigError(f"{key}.unit is {unit!r}", nearest(str(unit), _UNITS))
    if not entry.get("source"):
        raise ConfigError(f"{key}.source is {entry.get('source')!r}", "where the numbers were read")
    found: dict[str, dict[str, float]] = {}
    for name, numbers in rows.items() if isinstance(rows, Mapping) else ():
        if not isinstance(numbers, Mapping):
            raise ConfigError(f"{key}.rows.{name} is {numbers!r}", "numbers by task, or average")
        for column, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"{key}.rows.{name}.{column} is {value!r}", "a number; leave out what is not known")
        found[str(name)] = {str(column): float(value) for column, value in numbers.items()}
    return Published(str(entry["source"]), _UNITS[unit], found)

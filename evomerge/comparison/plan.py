"""The parts of a protocol, each a run of its own: grids, searches, and the test of all that is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from evomerge.comparison.settings import Protocol, SearchEntry, protocol_of
from evomerge.config.compose import compose_config
from evomerge.config.construct import TARGET, to_builtin
from evomerge.config.keywords import written
from evomerge.config.schema import Config
from evomerge.config.trust import check_trust
from evomerge.errors import ConfigError
from evomerge.session.settings import check_nodes, check_settings

GRID, TEST, SEARCH = "grid", "test", "search-"
"""Folders of the parts: members of grids on the search's items, every row on the test items, each search."""

OVERLAP = "overlap.json"
"""How many items of the test are items of the search."""

_LISTED = {TARGET: "search_spaces.listed.ListedSpace"}
_EACH = {TARGET: "evomerge.strategies.brute_force.BruteForce"}
_STOCK = {"forwards": "exact", "generation": "stock"}
"""What ``auto`` means where the numbers are to be those of the stock tool."""


@dataclass(frozen=True)
class Plan:
    """A protocol that was composed.

    Attributes:
        option: of the group ``protocol``.
        overrides: of the command line.
        config: composed from these.
        protocol: its own node.
        asked: words that stood on the command line.
        own: a folder of one's own options.
        trust: whether code of one's own that files name is run.
    """

    option: str
    overrides: tuple[str, ...]
    config: Config
    protocol: Protocol
    asked: tuple[str, ...] = ()
    own: Path | None = None
    trust: bool = False

    @staticmethod
    def of(
        option: str,
        overrides: Sequence[str] = (),
        *,
        asked: Sequence[str] | None = None,
        own: Path | None = None,
        trust: bool = False,
    ) -> Plan:
        """Compose a protocol.

        Args:
            option, overrides, own, trust: its own.
            asked: words that stood on the command line, `overrides` for ``None``.

        Raises:
            ConfigError: it cannot be composed, or its own keys are not right.
        """
        words = tuple(overrides if asked is None else asked)
        config = _composed([f"protocol={option}", *overrides], words, own, trust)
        return Plan(option, tuple(overrides), config, protocol_of(config), words, own, trust)

    @property
    def tests_apart(self) -> bool:
        """Whether the test items are a fitness of their own."""
        return self.config.held_out is not None

    def grid(self, folder: Path) -> Config | None:
        """The run of every member of every grid, on the items of the search; ``None`` where there is no grid.

        Args:
            folder: of the protocol's run.
        """
        members = self.protocol.grid_members
        if not members:
            return None
        recipes = {name: _recipe(own.method, values) for name, (own, values) in members.items()}
        return self._listed(folder / GRID, recipes, baselines=False)

    def search(self, folder: Path, entry: SearchEntry) -> Config:
        """The run of a search, without items of the test."""
        words = [f"protocol={self.option}", *entry.words, *self.overrides]
        config = _composed(words, self.asked, self.own, self.trust)
        self._settle(config, folder / f"{SEARCH}{entry.name}")
        given = {word.lstrip("+").partition("=")[0] for word in words}
        if "search.evaluations" not in given:
            config.search.evaluations = self.protocol.budget(entry)
        if "search.racing.first" not in given:
            config.search.racing.first = None  # equal cost: every candidate sees as many items as one of a grid
        config.search.baselines = False
        return config

    def test(self, folder: Path, rows: Mapping[str, Any]) -> Config:
        """The run of everything that is compared, on the items of the test.

        Args:
            folder: of the protocol's run.
            rows: recipes as `search_spaces.listed.ListedSpace` takes them.
        """
        config = self._listed(folder / TEST, rows, baselines=True)
        with open_dict(cast(DictConfig, config)):
            if self.tests_apart:
                config.fitness = self.config.held_out
            for key, value in _STOCK.items():
                if OmegaConf.is_dict(config.fitness) and config.fitness.get(key) == "auto":
                    config.fitness[key] = value
        return config

    def untuned(self) -> dict[str, dict[str, Any]]:
        """Every method as its paper has it without tuning, as recipes of the listed space."""
        return {own.name: _recipe(own.method, own.parameters) for own in self.protocol.methods if own.untuned}

    def check(self, folder: Path) -> None:
        """Check what can be said of all parts before a model is opened.

        Raises:
            ConfigError: names the key; of a search's words, also the search.
        """
        check_settings(self.config)
        if self.config.phases is not None:
            raise ConfigError("phases are set beside protocol", "phases in the words of a search of its own")
        for config in (self.grid(folder), self.test(folder, self.untuned() or {"none": {"method": "linear"}})):
            if config is not None:
                check_nodes(config)
        for entry in self.protocol.searches:
            try:
                config = self.search(folder, entry)
                check_settings(config)
                check_nodes(config)
            except ConfigError as error:
                given = f"protocol.searches.{entry.name}: {error.given}"
                raise ConfigError(given, error.allowed, error.do) from error

    def _listed(self, path: Path, recipes: Mapping[str, Any], *, baselines: bool) -> Config:
        """A run that scores every one of some recipes once."""
        config = cast(Config, OmegaConf.create(OmegaConf.to_container(cast(DictConfig, self.config), resolve=True)))
        self._settle(config, path)
        with open_dict(cast(DictConfig, config)):
            config.search_space = {**_LISTED, "recipes": to_builtin(recipes)}
            config.strategy = dict(_EACH)
            config.search.evaluations = len(recipes)
            config.search.baselines = baselines
            config.search.scalarise, config.search.penalty = None, 0.0
            config.search.racing.first, config.search.refine.after = None, None
            config.search.finalists, config.search.give_up = 0, None
            config.search.hours = config.search.patience = config.search.target = None
            config.search.warm_start = []
            config.cheap = config.validation = None
        return config

    def _settle(self, config: Config, path: Path) -> None:
        """What is the same of all parts: a folder of its own, no protocol in it, nothing held out."""
        with open_dict(cast(DictConfig, config)):
            config.run_dir, config.name, config.protocol = str(path), path.name, None
            config.held_out = None


def _recipe(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {"method": method, **({"parameters": dict(values)} if values else {})}


def _composed(words: Sequence[str], asked: Sequence[str], own: Path | None, trust: bool) -> Config:
    more = [] if own is None else [f"hydra.searchpath=[{written(f'file://{own.resolve()}', '--config-dir')}]"]
    config = compose_config([*words, *more])
    if not trust:
        check_trust(OmegaConf.to_container(cast(DictConfig, config), resolve=True), asked, "the configuration")
    return config


def parts_of(plan: Plan) -> list[str]:
    """The folders of a protocol's parts, in the order in which they are run."""
    searches = [f"{SEARCH}{entry.name}" for entry in plan.protocol.searches]
    return [*([GRID] if plan.protocol.grid_members else []), *searches, TEST]

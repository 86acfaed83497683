"""Which runs can be gone on with, and what may change on the way."""

from __future__ import annotations

import importlib.metadata
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evomerge.config.key_types import check_types, composed_schema
from evomerge.config.overrides import set_value, take_away
from evomerge.config.schema import Config, to_yaml
from evomerge.config.trust import check_trust, leaves
from evomerge.errors import ConfigError, EvomergeError, EvomergeWarning, RecipeError, nearest
from evomerge.protocols import Evaluator
from evomerge.recipes.pool_info import PoolInfo
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger
from evomerge.run.ledger_file import LedgerError, require_no_writer
from evomerge.run.observers import Observers
from evomerge.run.record import Record
from evomerge.run.remains import lost_items, require_ledger
from evomerge.search.hooks import BestWriter
from evomerge.search.incumbent import Incumbent
from evomerge.search.loop import Search
from evomerge.search.stopping import RULES
from evomerge.session.checkpointing import begin
from evomerge.session.ending import rules_of
from evomerge.session.parts import Parts
from evomerge.session.phase_entries import longer_last
from evomerge.session.replay import ContinuedLedger, RecordedEvaluator, check_started
from evomerge.utils.files import read_bounded, write_text_atomic
from evomerge.utils.installation import VERSION, conf_dir
from evomerge.utils.safe_yaml import MAX_CHARACTERS, parse

MAY_CHANGE = (
    "search.evaluations",
    "search.sync",
    "search.checkpoint",
    "search.give_up",
    "search.hours",
    "search.patience",
    "search.target",
    "from_run",
    "display",
    "trackers",
    "evaluator",
    "pool.root",
    "pool.models",
    "fitness.task_timeout",
    "fitness.compare_forwards",
    *(f"{node}.task_timeout" for node in ("cheap", "validation", "held_out")),
    *(f"{node}.{key}" for node in ("fitness", "validation", "held_out") for key in ("raters", "look_every", "hours")),
)
"""Keys whose values a resumed run may be given anew; those below them too."""

_LIBRARIES = ("numpy", "scipy", "torch", "transformers", "lm_eval", "cma", "cmaes", "optuna", "ribs")


def library_versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on, by name; what is not installed is left out."""
    found = {"evomerge": VERSION, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclass
class Resumed:
    """A run that is gone on with.

    Attributes:
        folder: the run folder.
        record: of its ledger.
        evaluations: the budget.
        changes: what is not as it was when the run began, a line each.
        phases: evaluations of each of several phases, where the budget has changed.
        rules: what ends the search early, as `search` has it.
        calibration: seconds that statistics of data took this time; ``None`` where no method reads any.
    """

    folder: RunFolder
    record: Record
    evaluations: int
    changes: list[str] = field(default_factory=list)
    phases: Mapping[str, int] = field(default_factory=dict)
    rules: Mapping[str, Any] = field(default_factory=dict)
    calibration: float | None = None
    resumed: ClassVar[bool] = True

    @property
    def event(self) -> dict[str, Any]:
        """Fields of the ``resumed`` event."""
        rules = {"stop_rules": self.rules} if self.rules else {}
        made = {} if self.calibration is None else {"calibration": self.calibration}
        return {"events": self.record.events, "evaluations": self.evaluations, "changes": self.changes, **rules, **made}

    @property
    def budget(self) -> int:
        """Evaluations that the run was last given: by its ``stopped`` event, else its ``started``.

        `LedgerError` where the ledger says no number.
        """
        event = self.record.last("stopped") or self.record.first("started") or {}
        budget = event.get("evaluations", 0)
        if type(budget) is not int or budget < 0:
            raise LedgerError(
                f"{self.folder.ledger}: event {event.get('seq')} has evaluations {str(budget)[:80]!r}",
                "a number of evaluations, as the search wrote it",
            )
        return budget

    def open_folder(self, config: Config, parts: Parts) -> RunFolder:
        """The folder as it is."""
        self.calibration = parts.calibration_seconds if parts.calibration is not None else None
        return self.folder

    def open_ledger(self, folder: RunFolder, sync: Literal["every", "interval"], observe: Observers) -> Ledger:
        """The ledger, which compares with the record before it writes anything new."""
        self._ledger = ContinuedLedger(folder, self.record, resumed=self.event, sync=sync, observe=observe)
        return self._ledger

    def check(self, fingerprint: str, cheap: str | None) -> None:
        """Compare fitnesses and versions with those of the run; `EvomergeError` for another fitness."""
        self.folder.sweep()
        lost = lost_items(self.folder, self.record.with_items)
        if lost:
            warnings.warn(lost, EvomergeWarning, stacklevel=2)
            self.folder.items.mkdir(exist_ok=True)
        self.changes += check_started(self.record, fingerprint, cheap, library_versions())
        self._keep_budget()

    def wrap(self, keep: BestWriter, evaluator: Evaluator, incumbent: Incumbent) -> tuple[BestWriter, Evaluator]:
        """Evaluations come from the record while it has them; the best is written once something is new, or if lost."""
        self._restores = self.lacks_best
        return self._keeper(self._ledger, keep, incumbent), RecordedEvaluator(evaluator, self.record)

    @property
    def lacks_best(self) -> bool:
        """Whether what was best, by the ledger, is no longer in the folder."""
        names = self.folder.best_recipe.name, "weights.safetensors", "genome.json"
        held = [self.folder.best_recipe.with_name(name) for name in names]
        return self.record.count("improved") > 0 and not any(path.is_file() for path in held)

    def begin(self, search: Search) -> None:
        """Begin from the latest checkpoint that can be used; where the best is to be written again, from none."""
        if not self._restores:
            begin(search, self._ledger)

    def check_pool(self, info: PoolInfo) -> None:
        """`EvomergeError` where a model of the pool is not the one of the run; other places are noted."""
        before, now = dict(self.folder.read_pool().refs), dict(info.refs)
        if list(before) != list(now):
            raise EvomergeError(
                f"the pool has models {', '.join(now)}, the run's had {', '.join(before)}", "the same models"
            )
        for name, ref in now.items():
            if ref.identity != before[name].identity:
                raise EvomergeError(
                    f"model {name} at {ref.location} has {ref.identity}, the run began with {before[name].identity}",
                    "the same weights: scores would not be comparable",
                    f"give the place of the model as it was with pool.models.{name}=...",
                )
            if ref.location != before[name].location:
                self.changes.append(f"model {name} is at {ref.location}")

    def _keep_budget(self) -> None:
        """Write a budget and rules that have changed to the run's configuration, so that another session knows them."""
        config = read_config(self.folder)
        if int(config.search.evaluations) != self.evaluations or rules_of(config) != self.rules:
            config.search.evaluations = self.evaluations
            config.search.update({name: self.rules.get(name) for name in RULES})
            for name, evaluations in self.phases.items():
                config.phases[name].evaluations = evaluations
            write_text_atomic(self.folder.config, to_yaml(config))

    def _keeper(self, ledger: ContinuedLedger, keep: BestWriter, incumbent: Incumbent) -> BestWriter:
        """Writes the best down once something new is in the ledger: until then it is what it was, or was lost."""

        def when_live(found: Incumbent) -> None:
            if ledger.live or self._restores:
                keep(found)

        def go_live() -> None:
            if incumbent.best is not None:
                keep(incumbent)

        ledger.go_live = go_live
        return when_live


def open_run(path: str | Path, overrides: Sequence[str], *, trust: bool = False) -> tuple[Config, Resumed]:
    """The configuration of a run, with what shall change, and its record.

    Nothing that the folder holds is executed here: YAML is read as plain values.

    Args:
        path: the run folder.
        overrides: ``key=value``, of the keys that may change.
        trust: build parts that are not evomerge's, import modules and run code of checkpoints as the run's
            configuration says.

    Raises:
        EvomergeError: there is no such run, or it cannot go on like this; says why.
    """
    folder = RunFolder.open(path)
    require_no_writer(folder.lock)
    config = read_config(folder)
    before, kept = int(config.search.evaluations), _precision(config)
    config.from_run = None  # another folder is read when the command line names it
    changes = [change for change in [_apply(config, override) for override in overrides] if change]
    _keep_precision(kept, _precision(config))
    config.run_dir = str(path)
    if not trust:
        check_trust(OmegaConf.to_container(config, resolve=True), overrides, "the run's configuration")
    record = Record(folder)
    require_ledger(folder, record.events)
    if int(config.search.evaluations) < record.proposed:
        raise ConfigError(
            f"search.evaluations is {config.search.evaluations}, and {record.proposed} candidates were asked already",
            "as many, or more",
        )
    phases = longer_last(config, before) if int(config.search.evaluations) != before else {}
    return cast(Config, config), Resumed(
        folder, record, int(config.search.evaluations), changes, phases, rules_of(config)
    )


def _precision(config: DictConfig) -> dict[str, Any]:
    """The keys of an evaluator's node that say which weights score; one that is chosen anew takes them over."""
    node = None if OmegaConf.is_missing(config, "evaluator") else config.evaluator
    names = ("quantise", "quantise_held_out")
    return {name: (node.get(name) or None) if isinstance(node, DictConfig) else None for name in names}


def _keep_precision(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """`ConfigError` where weights are no longer quantised as they were: scores would not be comparable."""
    for name, old in before.items():
        if now[name] != old:
            raise ConfigError(
                f"evaluator.{name} is {now[name] or 'null'} and was {old or 'null'} when the run began",
                "what candidates are scored with cannot change in a run that goes on",
                f"leave evaluator.{name} out, or start a new one with search.warm_start=[RUN]",
            )


def read_config(folder: RunFolder) -> DictConfig:
    """The configuration of a run, as plain values: nothing that it says is resolved or executed.

    Raises:
        ConfigError: it is missing or malformed.
    """
    try:
        content = parse(read_bounded(folder.config, 4 * MAX_CHARACTERS, follow=False).decode())
    except OSError as error:
        raise ConfigError(f"{folder.config} cannot be read: {error.strerror}", "the folder of a run") from error
    except (RecipeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{folder.config} is malformed: {error}", "the file that the search wrote") from error
    for key, value in leaves(content):
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{folder.config}: {key} is {value!r}", "plain values, as the search wrote them")
    try:
        config = OmegaConf.merge(OmegaConf.structured(composed_schema()), content)
    except (OmegaConfBaseException, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{folder.config} is malformed: {reason}", "the file that the search wrote") from error
    assert isinstance(config, DictConfig)
    try:
        check_types(config)
    except ConfigError as error:
        raise ConfigError(f"{folder.config}: {error.given}", error.allowed) from error
    return config


def _apply(config: DictConfig, override: str) -> str:
    """Set one key, and say what has changed."""
    if override.startswith("~"):
        return take_away(config, override)
    key, assigned, value = override.lstrip("+").partition("=")
    if not assigned:
        raise ConfigError(f"cannot read the override {override!r}", "key=value")
    if not any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE):
        raise ConfigError(
            f"{key} cannot change in a run that goes on",
            f"what may change: {', '.join(MAY_CHANGE)}",
            "start a new one with search.warm_start=[RUN]",
        )
    if key == "evaluator":
        files = {path.stem: path for path in (conf_dir() / "evaluator").glob("*.yaml")}
        if value not in files:
            raise ConfigError(f"evaluator={value}: there is no such option", nearest(value, files))
        chosen = OmegaConf.load(files[value])
        chosen.update({name: old for name, old in _precision(config).items() if old and name in chosen})
        config.evaluator = chosen
        return override
    return set_value(config, key, value)
